/**
 * Emails: background jobs with retries, backoff, dead letters, and a second chance.
 *
 * Twenty mails are sent by a worker that runs five at a time. The mail server refuses one address for good (no retry can help), is busy twice for
 * another (a retry helps), and does not answer for a third, which is given up after three tries. Then somebody mends it, and the dead letters are
 * redriven: to this group, and to nobody else who reads the topic.
 *
 *   npm run examples emails
 */
import { RejectError, connect, json, topic } from 'millrace'
import { check, exampleBroker, newName, until, untilSettled } from './support.ts'

interface Mail {
  readonly to: string
  readonly subject: string
}

await using broker = await exampleBroker()
await using mill = await connect(broker.address)

const mails = topic(newName('mails'), { value: json<Mail>() })
const group = newName('mailer')

// A topic for jobs: new groups begin with the first record, failures are retried, and what is given up is kept.
await mill.admin.createTopic(mails.name, { partitions: 2, config: { 'jobs.enable': 'true' } })

// ── What stands for a mail server ──
const delivered = new Map<string, number>()
let busy = 2
let isMended = false

function deliver({ to }: Mail): void {
  if (to === 'nobody@example.org' && !isMended) {
    // Trying again cannot help: straight to the dead letters.
    throw new RejectError(`550 no such mailbox: ${to}`)
  }
  if (to === 'busy@example.org' && busy-- > 0) throw new Error('451 try again later')
  if (to === 'down@example.org' && !isMended) throw new Error('connect ETIMEDOUT')
  delivered.set(to, (delivered.get(to) ?? 0) + 1)
}

// ── The jobs ──
await using producer = mill.producer()
const addresses = ['nobody', 'busy', 'down', ...Array.from({ length: 17 }, (_, i) => `user-${i}`)]
await producer.sendAll(
  mails,
  addresses.map((name) => ({
    value: { to: `${name}@example.org`, subject: 'Hello' },
    // Sent twice by mistake, within five minutes, it is one mail all the same.
    dedupeId: `welcome-${name}`,
  })),
)
const again = await producer.send(mails, {
  value: { to: 'user-0@example.org', subject: 'Hello' },
  dedupeId: 'welcome-user-0',
})
console.log(`${addresses.length} mails are queued`)
check(again.duplicate, 'a second mail with the same dedupe id is recognized')

// ── The worker: returning is done, throwing is a retry ──
await using worker = mill.worker(
  mails,
  {
    group,
    concurrency: 5,
    attempts: 3,
    backoff: { type: 'exponential', delayMs: 100, maxMs: 1_000 },
  },
  ({ value }) => {
    if (value === null) throw new RejectError('a mail without content')
    deliver(value)
  },
)
let retries = 0
worker.on('retrying', () => {
  retries++
})
await worker.ready()
await untilSettled(mill, group)
console.log(`${delivered.size} are delivered`)
check(delivered.size === 18, 'all that can be delivered is delivered')
check(delivered.has('busy@example.org'), 'the busy one came through, at the third try')
check(retries >= 3, 'failures were tried again')

// ── The dead letters, with what they failed with ──
const letters = new Map<string, string>()
for await (const letter of mill.admin.deadLetters({ group, topic: mails.name })) {
  const { to } = mails.value.decode(letter.record.value ?? new Uint8Array())
  console.log(
    `  dead: ${to}, ${letter.reason}, failures ${letter.failures}: ${letter.error.message}`,
  )
  letters.set(to, `${letter.reason} ${letter.failures}`)
}
check(letters.size === 2, 'two are dead letters, once each')
check(letters.get('nobody@example.org') === 'rejected 1', 'one was rejected at its first try')
check(
  letters.get('down@example.org') === 'attempts_exhausted 3',
  'one was given up after three tries',
)

// ── A second chance ──
isMended = true
const { moved } = await mill.admin.redrive({ group, topic: mails.name })
await until('they are delivered', () => delivered.size >= addresses.length)
await untilSettled(mill, group)
console.log(`${moved} dead letters are redriven`)
check(moved === 2 && delivered.size === 20, 'after the redrive all twenty are delivered')
check(
  [...delivered.values()].every((count) => count === 1),
  'none was delivered twice',
)
const rest = await mill.admin.discardDeadLetters({ group, topic: mails.name }, { dryRun: true })
check(rest.discarded === 0, 'no dead letter is left to be dealt with')
