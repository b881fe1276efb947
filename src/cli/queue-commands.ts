import type { Command } from 'commander'
import { Option } from 'commander'
import { collect, toChoice, toCount, toDurationMs, toPositiveCount } from './arguments.ts'
import { asAdmin, withOutput, withServer } from './command-options.ts'
import type { Outcome } from './command-options.ts'
import type { CliIo } from './io.ts'
import type { ListDeadOptions, DiscardOptions } from './queue-dead.ts'
import type { ListDelayedOptions, MoveDelayedOptions } from './queue-delayed.ts'
import type { RedriveArguments } from './queue-redrive.ts'
import type { SendOptions } from './queue-send.ts'
import type {
  ConfigureQueueOptions,
  DescribeQueueOptions,
  PauseQueueOptions,
  PeekOptions,
  UnblockOptions,
} from './queues.ts'
import type { AdminOptions } from './topics.ts'
import type { WorkOptions } from './work.ts'

// As in run.ts: what needs gRPC is imported by the command that runs.

const RECORD_STATES = [
  'unscanned',
  'available',
  'acquired',
  'parked',
  'dead-lettering',
  'blocked',
  'done',
  'dead',
] as const
const REASONS = [
  'rejected',
  'attempts_exhausted',
  'lease_expired',
  'expired',
  'retention',
  'unroutable',
  'too_old',
] as const
const ORDERS = ['none', 'key', 'partition'] as const
const DEFAULT_WATCH_MS = 2_000

export function addQueue(program: Command, io: CliIo, outcome: Outcome): void {
  const queue = program
    .command('queue')
    .description('work queues: send, work, look at, pause and redrive them')
  addSend(queue, io, outcome)
  addWork(queue, io, outcome)
  addList(queue, io, outcome)
  addDescribe(queue, io, outcome)
  addLooks(queue, io, outcome)
  addPause(queue, io, outcome)
  addConfig(queue, io, outcome)
  addRedrive(queue, io, outcome)
  addDead(queue, io, outcome)
  addDelayed(queue, io, outcome)
  addWork(program, io, outcome)
  queue.addHelpText(
    'after',
    '\nSee `millrace help queues`. `millrace work` is `millrace queue work`.',
  )
}

type SendArguments = Omit<SendOptions, 'delayMs' | 'at' | 'backoff' | 'keepPartition'> & {
  readonly delay?: number
  readonly at?: string
  readonly backoff?: string
}

function addSend(queue: Command, io: CliIo, outcome: Outcome): void {
  withOutput(withServer(queue.command('send <topic>')))
    .description('send lines of stdin, or one value, as work; prints where each is')
    .option('-v, --value <text>', 'one record with this value; nothing is read')
    .option('--key <key>', 'one key for all')
    .option('-k, --key-separator <text>', 'what stands before it in a line is the key')
    .option('-H, --header <name=value>', 'a header for all; may be repeated', collect, [])
    .option('-p, --partition <number>', 'one partition for all', toCount('--partition'))
    .option('--json', 'lines are envelopes, as `tail -f json` prints them', false)
    .option('-Z, --empty-is-null', 'an empty value is a tombstone', false)
    .option('-0, --null', 'lines end with NUL', false)
    .option('-q, --quiet', 'print no receipts', false)
    .optionsGroup('What workers make of it:')
    .option('--type <name>', 'what kind of work it is')
    .option('--ordering-key <text>', 'what order=key goes by, in place of the key')
    .option(
      '--attempts <count>',
      'tries in all; never more than the group allows',
      toPositiveCount('--attempts'),
    )
    .option('--backoff <type:time>', 'wait before each further try: fixed:5s, list:1s,5s,1m …')
    .option('--delay <duration>', 'not before that has passed, such as 5m', toDurationMs('--delay'))
    .option('--at <time>', 'not before: 2026-01-31T12:00Z (UTC unless it names a zone)')
    .option('--dedupe-id <id>', 'a second record with this id is not written')
    .addHelpText(
      'after',
      '\nA record that waits (--delay, --at) has no offset yet: its delay id is printed, for `millrace queue delayed cancel ID`.',
    )
    .action(async (topic: string, { delay, at, backoff, ...options }: SendArguments) => {
      const { toBackoff, toTime } = await import('./queue-arguments.ts')
      const { queueSend } = await import('./queue-send.ts')
      outcome.code = await queueSend(io, topic, {
        ...options,
        keepPartition: false,
        delayMs: delay,
        at: at === undefined ? undefined : toTime('--at')(at),
        backoff: backoff === undefined ? undefined : toBackoff('--backoff')(backoff),
      })
    })
}

type WorkArguments = Omit<WorkOptions, 'timeoutMs' | 'leaseMs' | 'idleMs' | 'backoff'> & {
  readonly timeout?: number
  readonly lease?: number
  readonly idle?: number
  readonly backoff?: string
}

function addWork(parent: Command, io: CliIo, outcome: Outcome): void {
  withServer(parent.command('work <topic>'))
    .description('take records as a worker: print and accept them, or run a command for each')
    .requiredOption('-g, --group <name>', 'all who work with the same group share the records')
    .option('-n, --num <count>', 'stop after so many records', toCount('--num'))
    .option('-e, --exec <command>', 'run a shell command for each; the value is its input')
    .option('-c, --concurrency <count>', 'commands at once', toPositiveCount('--concurrency'), 1)
    .option(
      '--timeout <duration>',
      'end a command that takes longer; its record is tried again',
      toDurationMs('--timeout'),
    )
    .option(
      '-f, --format <format>',
      'pretty, json, table, raw or a format string; with --exec json: a line about each record',
    )
    .option('--drain', 'stop when there is nothing more to do', false)
    .option('--idle <duration>', 'stop when nothing has come for so long', toDurationMs('--idle'))
    .option(
      '--lease <duration>',
      'others get a record when its worker has been silent for so long (default: 30s)',
      toDurationMs('--lease'),
    )
    .option('-0, --null', 'end records with NUL', false)
    .option('--meta-only', 'sizes in place of keys, values and headers', false)
    .option('-q, --quiet', 'no word about single records, no summary', false)
    .optionsGroup('Settings that the group keeps (`millrace queue config`):')
    .option('--attempts <count>', 'tries in all, 0: no end (default: 5)', toCount('--attempts'))
    .option('--backoff <type:time>', 'wait between tries: exponential:1s, fixed:5s, list:1s,1m …')
    .addOption(
      new Option('--order <order>', 'none, key (one of a key at a time) or partition').argParser(
        toChoice('--order', ORDERS),
      ),
    )
    .option('--start <where>', 'where a new group begins: earliest, latest, @TIME or -1h')
    .option('--dead-letters [topic]', 'keep what is given up, in a topic of that name')
    .option('--set <name=value>', 'any other setting; may be repeated', collect, [])
    .addHelpText(
      'after',
      '\nExit code of the command: 0 done, 75 try again, any other rejected; ended by a signal or --timeout: try again; not found (126, 127):\n' +
        'the worker stops and gives the record back. See `millrace help queues`.',
    )
    .action(async (topic: string, { timeout, lease, idle, backoff, ...options }: WorkArguments) => {
      const { toBackoff } = await import('./queue-arguments.ts')
      const { work } = await import('./work.ts')
      outcome.code = await work(io, topic, {
        ...options,
        timeoutMs: timeout,
        leaseMs: lease,
        idleMs: idle,
        backoff: backoff === undefined ? undefined : toBackoff('--backoff')(backoff),
      })
    })
}

function addList(queue: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(queue.command('list').alias('ls'))
    .description('list queue groups')
    .option('-m, --match <regex>', 'only names that match')
    .action(async (options: AdminOptions & { readonly match?: string }) => {
      const { listGroups } = await import('./groups.ts')
      outcome.code = await listGroups(io, { ...options, type: 'queue' })
    })
}

type DescribeArguments = Omit<DescribeQueueOptions, 'watchMs'> & {
  /** True: given without a time. */
  readonly watch?: number | boolean
}

function addDescribe(queue: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(queue.command('describe <group>'))
    .description('how much is ready, in hand, to be retried; workers, partitions, settings')
    .option('--members', 'only the workers', false)
    .option('--partitions', 'only the partitions', false)
    .option('--config', 'all settings, with their ranges', false)
    .option(
      '-w, --watch [interval]',
      'again and again, each 2s or so often, until interrupted',
      toDurationMs('--watch'),
    )
    .action(async (group: string, { watch, ...options }: DescribeArguments) => {
      const { describeQueue } = await import('./queues.ts')
      outcome.code = await describeQueue(io, group, {
        ...options,
        watchMs: watch === true ? DEFAULT_WATCH_MS : watch === false ? undefined : watch,
      })
    })
}

function addLooks(queue: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(queue.command('peek <group> <topic>'))
    .description('look at records that are not done, without touching them')
    .option('-p, --partition <number>', 'only this one', toCount('--partition'))
    .addOption(
      new Option('--state <state>', `only ${RECORD_STATES.join(', ')}`).argParser(
        toChoice('--state', RECORD_STATES),
      ),
    )
    .option('-n, --limit <count>', 'so many, up to 1000 (default: 20)', toPositiveCount('--limit'))
    .action(async (group: string, topic: string, options: PeekOptions) => {
      const { peekQueue } = await import('./queues.ts')
      outcome.code = await peekQueue(io, group, topic, options)
    })
  asAdmin(queue.command('explain <group> <record...>'))
    .description('why a record is where it is: explain mailer emails 0:17')
    .action(async (group: string, record: string[], options: AdminOptions) => {
      const { explainRecord } = await import('./queues.ts')
      outcome.code = await explainRecord(io, group, record, options)
    })
  asAdmin(queue.command('unblock <group> <record...>'))
    .description('go on after a record that stops its key or partition (dlq.policy=block)')
    .option('--skip', 'give it up', false)
    .option('--retry', 'try it again, with its failures forgotten', false)
    .action(async (group: string, record: string[], options: UnblockOptions) => {
      const { unblockRecord } = await import('./queues.ts')
      outcome.code = await unblockRecord(io, group, record, options)
    })
}

type PauseArguments = Omit<PauseQueueOptions, 'until' | 'forMs'> & {
  readonly until?: string
  readonly for?: number
}

function addPause(queue: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(queue.command('pause <group>'))
    .description('give out nothing more; what is in hand may finish')
    .option('--until <time>', 'go on by itself then')
    .option('--for <duration>', 'go on by itself after so long', toDurationMs('--for'))
    .action(async (group: string, { until, for: forMs, ...options }: PauseArguments) => {
      const { toTime } = await import('./queue-arguments.ts')
      const { pauseQueue } = await import('./queues.ts')
      outcome.code = await pauseQueue(io, group, {
        ...options,
        forMs,
        until: until === undefined ? undefined : toTime('--until')(until),
      })
    })
  asAdmin(queue.command('resume <group>'))
    .description('go on after a pause')
    .action(async (group: string, options: AdminOptions) => {
      const { resumeQueue } = await import('./queues.ts')
      outcome.code = await resumeQueue(io, group, options)
    })
}

function addConfig(queue: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(queue.command('config <group>'))
    .description('show all settings of a queue group, or change some')
    .option('--set <name=value>', 'set; may be repeated', collect, [])
    .option('--clear <name>', 'back to the default; may be repeated', collect, [])
    .option('--dry-run', 'check everything, change nothing', false)
    .action(async (group: string, options: ConfigureQueueOptions) => {
      const { configureQueue } = await import('./queues.ts')
      outcome.code = await configureQueue(io, group, options)
    })
}

/** What narrows down dead letters, as commander gives it. */
type WithTimes<T> = Omit<T, 'since' | 'until'> & {
  readonly since?: string
  readonly until?: string
}

function withFilter(command: Command): Command {
  return command
    .addOption(
      new Option('--reason <reason>', `only ${REASONS.slice(0, 3).join(', ')} …`).argParser(
        toChoice('--reason', REASONS),
      ),
    )
    .option('--error-type <name>', 'only with this type of error')
    .option('-o, --offsets <from:to>', 'only these of the topic of dead letters')
    .option('--since <time|duration>', 'only what died since then, such as 1h')
    .option('--until <time>', 'only what died before')
    .option('-H, --header <name=value>', 'only with this header; may be repeated', collect, [])
    .option('--of-group <name>', 'only those of this group')
    .option('--of-topic <name>', 'only those of this topic')
    .option('-n, --limit <count>', 'at most so many', toPositiveCount('--limit'))
}

function withConsent(command: Command): Command {
  return command
    .option('-y, --yes', 'do not ask', false)
    .option('--dry-run', 'only show the plan', false)
    .addHelpText(
      'after',
      '\nWithout a terminal and without --yes or --dry-run nothing is changed and the exit code is 2.',
    )
}

async function readTimes<T>(
  options: WithTimes<T>,
): Promise<Omit<T, 'since' | 'until'> & { readonly since?: Date; readonly until?: Date }> {
  const { toPastTime } = await import('./queue-arguments.ts')
  const { since, until, ...rest } = options
  return {
    // What is left after two names have been taken out.
    ...(rest as unknown as Omit<T, 'since' | 'until'>),
    ...(since === undefined ? {} : { since: toPastTime('--since')(since) }),
    ...(until === undefined ? {} : { until: toPastTime('--until')(until) }),
  }
}

function addRedrive(queue: Command, io: CliIo, outcome: Outcome): void {
  const redrive = queue.command('redrive [place...]')
  withConsent(withFilter(asAdmin(redrive)))
    .description(
      'give dead letters of GROUP TOPIC, or of a topic of them, back to their group: shows the plan, then asks',
    )
    .option('--to <topic>', 'to a topic, for all who read it, in place of the one group')
    .option('--rate <count>', 'so many a second (default: 100)', toPositiveCount('--rate'))
    .option('--keep-attempts', 'failures so far go on counting', false)
    .option('--background', 'do not wait for the end', false)
    .action(async (place: string[], options: WithTimes<RedriveArguments>) => {
      const { redrive: perform } = await import('./queue-redrive.ts')
      outcome.code = await perform(io, place, await readTimes(options))
    })
  asAdmin(redrive.command('list').alias('ls'))
    .description('redrives under way, and the last ones that have ended')
    .action(async (_: AdminOptions, command: Command) => {
      const { listRedrives } = await import('./queue-redrive.ts')
      outcome.code = await listRedrives(io, command.optsWithGlobals())
    })
  asAdmin(redrive.command('cancel <id>'))
    .description('end a redrive; what has been moved stays moved')
    .action(async (id: string, _: AdminOptions, command: Command) => {
      const { cancelRedrive } = await import('./queue-redrive.ts')
      outcome.code = await cancelRedrive(io, id, command.optsWithGlobals())
    })
}

function addDead(queue: Command, io: CliIo, outcome: Outcome): void {
  const dead = queue
    .command('dead')
    .description('dead letters of GROUP TOPIC, or of a topic of them')
  withFilter(asAdmin(dead.command('list [place...]').alias('ls')))
    .description('list them')
    .option('-a, --all', 'also those that have been redriven or discarded', false)
    .action(async (place: string[], options: WithTimes<ListDeadOptions>) => {
      const { listDead } = await import('./queue-dead.ts')
      outcome.code = await listDead(io, place, await readTimes(options))
    })
  asAdmin(dead.command('show [letter...]'))
    .description('all about one: show mailer emails 0:3, or show dlq.mailer.emails 0:3')
    .action(async (letter: string[], options: AdminOptions) => {
      const { showDeadLetter } = await import('./queue-dead.ts')
      outcome.code = await showDeadLetter(io, letter, options)
    })
  withConsent(withFilter(asAdmin(dead.command('discard [place...]'))))
    .description('settle them: they can still be read, and nothing redrives them any more')
    .action(async (place: string[], options: WithTimes<DiscardOptions>) => {
      const { discardDead } = await import('./queue-dead.ts')
      outcome.code = await discardDead(io, place, await readTimes(options))
    })
}

type DelayedArguments = Omit<ListDelayedOptions, 'from' | 'to'> & {
  readonly from?: string
  readonly to?: string
}

type MoveArguments = Omit<MoveDelayedOptions, 'at' | 'delayMs'> & {
  readonly at?: string
  readonly delay?: number
}

function addDelayed(queue: Command, io: CliIo, outcome: Outcome): void {
  const delayed = queue.command('delayed').description('records that wait for their time')
  asAdmin(delayed.command('list [topic]').alias('ls'))
    .description('list them, in the order in which they are due')
    .option('--from <time>', 'due then or later')
    .option('--to <time>', 'due before')
    .option('-n, --limit <count>', 'at most so many', toPositiveCount('--limit'))
    .action(async (topic: string | undefined, { from, to, ...options }: DelayedArguments) => {
      const { toTime } = await import('./queue-arguments.ts')
      const { listDelayed } = await import('./queue-delayed.ts')
      outcome.code = await listDelayed(io, topic, {
        ...options,
        from: from === undefined ? undefined : toTime('--from')(from),
        to: to === undefined ? undefined : toTime('--to')(to),
      })
    })
  asAdmin(delayed.command('count [topic]'))
    .description('how many wait')
    .action(async (topic: string | undefined, options: AdminOptions) => {
      const { countDelayed } = await import('./queue-delayed.ts')
      outcome.code = await countDelayed(io, topic, options)
    })
  asAdmin(delayed.command('cancel <id...>'))
    .description('they are never appended')
    .action(async (ids: string[], options: AdminOptions) => {
      const { cancelDelayed } = await import('./queue-delayed.ts')
      outcome.code = await cancelDelayed(io, ids, options)
    })
  asAdmin(delayed.command('move <id>'))
    .description('to another time')
    .option('--at <time>', 'such as 2026-01-31T12:00Z')
    .option('--delay <duration>', 'from now on', toDurationMs('--delay'))
    .action(async (id: string, { at, delay, ...options }: MoveArguments) => {
      const { toTime } = await import('./queue-arguments.ts')
      const { moveDelayed } = await import('./queue-delayed.ts')
      outcome.code = await moveDelayed(io, id, {
        ...options,
        delayMs: delay,
        at: at === undefined ? undefined : toTime('--at')(at),
      })
    })
  asAdmin(delayed.command('fire <id...>'))
    .description('append them now')
    .action(async (ids: string[], options: AdminOptions) => {
      const { fireDelayed } = await import('./queue-delayed.ts')
      outcome.code = await fireDelayed(io, ids, options)
    })
}
