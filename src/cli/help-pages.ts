import { POSITION_GRAMMAR } from '../client/position.ts'

const OFFSETS = `Positions name a place in every partition of a topic. The same words work after -o, --until and
--before, and in the client's \`from\` and \`until\`.

${POSITION_GRAMMAR}

  millrace tail orders                     from the start, then wait for more
  millrace tail orders -o end              only what comes from now on
  millrace tail orders -o -10              the last 10 of each partition, then wait for more
  millrace tail orders -o -10 --no-follow  the last 10 of each partition
  millrace tail orders -o :end             all there is now
  millrace tail orders -o 100:200 -p 0     offsets 100 to 199 of partition 0
  millrace tail orders --since 1h          what was written in the last hour, then wait for more
  millrace tail orders -o @2026-01-01:2026-01-02

\`tail\` also knows where groups are (\`millrace help groups\`):
  millrace tail orders -o group:billing    from where billing is; joins nothing, changes nothing
  millrace tail orders -o group:billing:end        what billing still has to do
  millrace tail orders -g billing          as a member of billing, from what it has committed
`

const GROUPS = `Whoever reads with the same group name shares the work: each partition is one member's at a time.
What has been processed is committed, so the group goes on where it was, in whatever process.

  millrace tail orders -g billing             a member; start it again elsewhere, and they share
  millrace tail -g audit --pattern '^orders'  several topics, also those that come later
  millrace group list
  millrace group describe billing             members, who owns what, lag in records and in time
  millrace group describe billing --watch
  millrace group reset billing --to @-1h      shows from, to and delta, then asks

At least once. \`tail -g\` commits what stdout has taken (with --exec: what the command has ended well
with), and the commit is on the broker's disk when it is answered. What was not committed when a
member died is delivered again, to whoever owns the partition then.

  what happens                        what follows
  Ctrl-C, SIGTERM, -n, --idle         what was printed is committed, the group is left, others take
                                      over at once
  the reader of the pipe leaves       the same, but for the last piece, which comes again (-n is better)
  kill -9, a crash, a lost network    its partitions wait until its session has run out (45s, or
                                      --session-timeout), then others take over
  a stopped process (Ctrl-Z)          the same; when it wakes it has lost them, and joins anew
  a restart of the broker             members come back by themselves; nothing moves
  a restart with --instance-id        in time, it gets back what it had, and nobody else is disturbed
  a member joins or leaves            only the partitions that move stop, until their former owner
                                      has committed
  --exec fails                        the records before are committed, the group is left, code 1
  retention was faster                the command fails and names both offsets; --on-lost start (or
                                      end, or any position) goes on there

Where to begin. What is committed counts. Where nothing is: the start, or what -o says (or --from);
--from none fails instead. --commit manual commits nothing: a look at this member's share, which is
given back unread. \`-o group:billing\` without -g is a look that joins nothing and moves nobody.

Moving a group. Its members have to be stopped first: GROUP_NOT_EMPTY says who they are.
  millrace group reset billing --to start         everything again
  millrace group reset billing --to end           leave out what is left
  millrace group reset billing --to @2026-01-31T12:00Z --topic orders --partitions 0,2-4
  millrace group reset billing --shift -100       the last hundred of each partition again
  millrace group reset billing --to group:audit   to where another group is
  millrace group export billing > billing.jsonl   and back: reset billing --from-file billing.jsonl
  millrace group reset new --to @-1d --topic orders --create   a group that begins a day ago
--dry-run only shows the plan, and ends with 0. --yes does not ask. With neither, in a script, nothing
is changed and the exit code is 2. What lies outside the log is brought to its edge; the plan says so.

Committed offsets are forgotten 7 days after the last member has left (serve --group-offsets-retention).
  millrace group delete billing                   at once
  millrace group delete-offsets billing --topic orders
`

const QUEUES = `A queue group works through a topic record by record. Any number of workers share it, more than there
are partitions; each record is one worker's at a time, and is done when its worker says so. The log
stays: other groups and plain readers see the same records, before and after.

  millrace topic create emails -c jobs=true      earliest, retries, dead letters: the defaults for work
  millrace queue send emails --value '{"to":"a@example.org"}'
  millrace work emails -g mailer --exec ./send-mail.sh --concurrency 8
  millrace queue describe mailer --watch

The command gets the value as its input, and in its environment MILLRACE_GROUP, _TOPIC, _PARTITION,
_OFFSET, _TIMESTAMP, _KEY, _TYPE, _HEADERS (JSON), _TOMBSTONE (1: no value), _DELIVERY_COUNT (1 the first
time) and _FAILURE_COUNT.

  how it ends                     what becomes of the record
  0                               done
  75 (EX_TEMPFAIL)                tried again, after the backoff; the attempts count
  any other code                  rejected: a dead letter at once
  a signal (also as 128+n)        tried again, like 75
  --timeout                       ended with all that it has started, then like 75
  126, 127: it cannot be run      given back untouched; the worker stops with code 1
  the worker dies                 others get it when the lease has run out (30s, or --lease)
  the lease is lost               the command is ended (SIGTERM, after 5s SIGKILL): another has it
  Ctrl-C, SIGTERM                 nothing more is taken, commands in hand end in peace, then 130
  Ctrl-C again                    they are ended and their records given back; a third time: at once

Without --exec records are printed and are done when stdout has taken them. At least once: what was
in hand when something broke comes again, so make work that may be repeated.

What a record may bring along
  queue send … --attempts 3 --backoff list:1s,10s,1m    its own limits, within those of the group
  queue send … --ordering-key customer-7     with order=key: one at a time, in order, whoever works
  queue send … --dedupe-id order-17          a second one within 5 minutes is not written
  queue send … --delay 10m                   or --at 2026-01-31T09:00Z; prints a delay id
  millrace queue delayed list emails         what waits; also count, move ID, fire ID
  millrace queue delayed cancel ID

What has failed too often
  millrace queue dead list mailer emails     GROUP TOPIC, or the topic of dead letters itself
  millrace queue dead show mailer emails 0:3   the record, its error, its history
  millrace queue redrive mailer emails       shows what would be moved, then asks; to this group only
  millrace queue redrive mailer emails --reason rejected --since 1h --rate 10 --yes
  millrace queue redrive list                a redrive goes on by itself; cancel ID ends it
  millrace queue dead discard mailer emails  settled without another try
--dry-run only shows the plan, and ends with 0. --yes does not ask. With neither, in a script, nothing is
changed and the exit code is 2.

Why does it wait?
  millrace queue peek mailer emails          what is not done, without touching it
  millrace queue explain mailer emails 0:17  one record: state, tries, who has it, what it waits for
  millrace queue pause mailer --for 10m      and resume; what is in hand may finish
  millrace queue config mailer               all settings: retry.*, dlq.*, order, rate.*, concurrency.* …
  millrace queue config mailer --set retry.max.attempts=10 --set rate.max=100
  millrace queue unblock mailer emails 0:17 --skip    with dlq.policy=block
`

const FORMATS = `tail -f FORMAT, one of
  pretty   time, place, key, headers and value in a line, for people; the default on a terminal
  json     one object a line, with all of the record; the default elsewhere
  table    in columns
  raw      the value and a newline, nothing else
  '…'      a format string

In format strings
  %t  topic                 %K  length of the key in bytes, -1 for none
  %p  partition             %V  length of the value in bytes, -1 for a tombstone (also %S)
  %o  offset                %H  number of headers
  %k  key                   %d  time in milliseconds (also %T)
  %v  value (also %s)       %h  headers as a=1,b=2
  %%  %
  %v{hex} %v{base64} %v{json}   the same for %k; {json} leaves JSON as it is and quotes the rest
  %d{iso} %d{unix} %d{ms}       2026-01-31T12:00:00.000Z, seconds, milliseconds
  %d{strftime:%F %T}            strftime(3), in UTC: %Y %m %d %H %M %S %L (ms) %j %a %b %s … %%
  %h{%k=%v; }                   repeated for each header; %k and %v are the header's, modifiers work
  \\n \\t \\r \\0 \\\\ \\xNN            bytes
Nothing is added after a record: write the \\n. With -0 a NUL follows each.

The JSON envelope is stable. \`produce --json\` reads it back to the same bytes.
  {"topic":"t","partition":0,"offset":7,"timestamp":1767225600000,"key":"k","value":…,"headers":[{"key":"a","value":"x"}]}
  value    an object, list, number or boolean: the value is JSON on one line and stands here as it is
           a string: the value is text (also JSON that is a string or null, or on several lines)
           a string with "valueEncoding":"base64": the value is neither
           null: there is no value (a tombstone)
  key      a string, or with "keyEncoding":"base64"; null: there is no key
  headers  absent when there are none; each value like a key, with "encoding":"base64"
`

const EXAMPLES = `Start a broker, make a topic, send a file, read it back:
  millrace serve
  millrace topic create logs --partitions 6
  millrace produce logs < access.log
  millrace tail logs -f raw --no-follow

Look for something, and stop after ten:
  millrace tail logs --since 1h --grep 'status=5..' -n 10

Keys and headers. Everything before the first tab is the key:
  millrace produce users -k '\\t' -H source=import < users.tsv

Copy a topic to another broker, to the byte:
  millrace tail orders -o :end -f json | millrace produce orders --json --server other:9292

JSON values, with jq:
  millrace tail orders -f json --no-follow | jq 'select(.value.cents > 1000) | .key'

A command for each record; the value is its input:
  millrace tail jobs --exec 'curl -sf -d @- http://localhost:8080/jobs'

What is where, and the oldest hundred offsets gone:
  millrace tail orders --offsets
  millrace topic delete-records orders --before +100

Share the work between processes, and see who has what:
  millrace tail jobs -g workers --exec 'curl -sf -d @- http://localhost:8080/jobs'
  millrace group describe workers --watch

Work with retries and dead letters, by as many processes as you like:
  millrace topic create mails -c jobs=true
  millrace produce mails < mails.txt
  millrace work mails -g mailer --exec ./send-mail.sh --concurrency 8
  millrace queue redrive mailer mails

In ten minutes, unless it is cancelled before:
  millrace queue send mails --value 'are you still there?' --delay 10m
  millrace queue delayed cancel DELAY-ID

Do the last hour again, after a look at what that means:
  millrace group reset workers --to @-1h

Look into the files of a broker that is down, and save the records:
  millrace dump segments/orders-0
  millrace dump --records -f raw segments/orders-0 > saved.txt
`

export const HELP_PAGES: Readonly<Record<string, string>> = {
  offsets: OFFSETS,
  formats: FORMATS,
  groups: GROUPS,
  queues: QUEUES,
  examples: EXAMPLES,
}
