import { Command, Option } from 'commander'
import {
  collect,
  collectNames,
  toChoice,
  toCount,
  toDurationMs,
  toInteger,
  toPartitions,
  toPositiveCount,
} from './arguments.ts'
import { asAdmin, withOutput, withServer } from './command-options.ts'
import type { Outcome } from './command-options.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE } from './io.ts'
import { addQueue } from './queue-commands.ts'
import { reportError } from './report-error.ts'
import { UsageError } from './usage-error.ts'
import type { DumpOptions } from './dump.ts'
import type { ResetGroupOptions } from './group-reset.ts'
import type {
  DeleteGroupsOptions,
  DeleteOffsetsOptions,
  DescribeGroupOptions,
  ListGroupsOptions,
} from './groups.ts'
import type { ProduceOptions } from './produce.ts'
import type { TailOptions } from './tail.ts'
import type {
  AdminOptions,
  AlterOptions,
  CreateOptions,
  DeleteOptions,
  DeleteRecordsOptions,
  ListOptions,
} from './topics.ts'
import type { Acks } from '../common/acks.ts'
import { findNearest } from '../common/names.ts'
import { findVersion } from '../server/version.ts'

// Nothing of gRPC, the client or the broker is imported up here: `--help` and a typing error answer at once (DESIGN §7).

const ACKS: readonly Acks[] = ['none', 'written', 'durable']
const CODECS = ['none', 'lz4', 'gzip', 'zstd'] as const
const PAGES = ['offsets', 'formats', 'groups', 'queues', 'examples'] as const
const SCENES = ['log', 'groups', 'queues'] as const
const COMMITS = ['after-each', 'interval', 'manual'] as const
const GROUP_TYPES = ['stream', 'queue'] as const
const GROUP_STATES = ['empty', 'assigning', 'reconciling', 'stable'] as const

/**
 * Runs one command line, without the program's name. Resolves to the exit code; talk, errors included, has gone to `io.stderr`.
 */
export async function run(argv: readonly string[], io: CliIo): Promise<number> {
  const outcome: Outcome = { code: EXIT_DONE }
  try {
    const program = buildProgram(io, outcome)
    // The broker's settings become flags only when they are wanted: their table is loaded with it.
    if (argv.includes('serve')) await addServe(program, io, outcome)
    await program.parseAsync([...argv], { from: 'user' })
    return outcome.code
  } catch (error) {
    return reportError(io, error)
  }
}

function buildProgram(io: CliIo, outcome: Outcome): Command {
  const program = new Command('millrace')
  program
    .description('A durable log broker: produce records, read them back, any number of times.')
    .version(findVersion(), '-V, --version', 'print the version')
    .helpCommand(false)
    .configureHelp({ optionDescription: describeOption })
    .exitOverride()
    .configureOutput({
      writeOut: (text) => io.stdout.write(text),
      writeErr: (text) => io.stderr.write(text),
      outputError: () => undefined, // reportError prints it.
      getOutHelpWidth: () => io.stdout.columns ?? 100,
      getErrHelpWidth: () => io.stderr.columns ?? 100,
      getOutHasColors: () => false,
      getErrHasColors: () => false,
    })
    .addHelpText(
      'after',
      '\nmillrace help offsets, help formats, help groups, help queues and help examples say more. Exit codes: 0 done, 1 failed, 2 usage,\n' +
        '10 unhealthy, 73 data directory in use, 74 storage failed, 130 interrupted.',
    )
  program.command('serve').description('run a broker')
  addTopic(program, io, outcome)
  addGroup(program, io, outcome)
  addQueue(program, io, outcome)
  addProduce(program, io, outcome)
  addTail(program, io, outcome)
  addDump(program, io, outcome)
  addSmall(program, io, outcome)
  return program
}

/** commander would also say that a flag is off and a list is empty by default. */
function describeOption({ description, defaultValue }: Option): string {
  const isPlain =
    defaultValue === undefined ||
    typeof defaultValue === 'boolean' ||
    (Array.isArray(defaultValue) && defaultValue.length === 0)
  return isPlain ? description : `${description} (default: ${String(defaultValue)})`
}

/** Replaces the stub that shows in the list of commands by one with all flags. */
async function addServe(program: Command, io: CliIo, outcome: Outcome): Promise<void> {
  const { SETTINGS, describeRange } = await import('../server/config.ts')
  const serve = program.commands.find((command) => command.name() === 'serve')
  if (serve === undefined) return
  const attributes = new Map<string, string>()
  for (const row of SETTINGS) {
    const flag = row.kind === 'boolean' ? row.flag : `${row.flag} <${row.kind}>`
    const range = row.kind === 'boolean' || row.kind === 'text' ? '' : `; ${describeRange(row)}`
    const usual = row.defaultText === '' ? '' : ` (default: ${row.defaultText})`
    const option = new Option(flag, `${row.description}${range}${usual}`)
    attributes.set(row.key, option.attributeName())
    serve.addOption(option)
  }
  serve
    .option('--config <file>', 'settings file, a JSON object; else MILLRACE_CONFIG')
    .option('--print-config', 'print every setting with its value and where it is from, and end')
  withOutput(serve)
    .addHelpText(
      'after',
      '\nA flag beats the environment (MILLRACE_LISTEN for --listen), which beats the settings file.',
    )
    .action(async (options: Record<string, string | boolean | undefined>) => {
      const flags: Record<string, string | boolean | undefined> = {}
      for (const [key, attribute] of attributes) {
        if (options[attribute] !== undefined) flags[key] = options[attribute]
      }
      const { serve: start } = await import('./serve.ts')
      outcome.code = await start(io, flags, {
        config: typeof options['config'] === 'string' ? options['config'] : undefined,
        printConfig: options['printConfig'] === true,
        format: options['format'] === 'json' ? 'json' : 'text',
      })
    })
}

function addTopic(program: Command, io: CliIo, outcome: Outcome): void {
  const topic = program.command('topic').description('create, list, describe, alter, delete topics')
  asAdmin(topic.command('create <name...>'))
    .description('create topics')
    .option('-p, --partitions <count>', 'partitions', toPositiveCount('--partitions'))
    .option('-c, --config <name=value>', 'a setting; may be repeated', collect, [])
    .option('--if-not-exists', 'be content with an existing topic of any shape', false)
    .option('--dry-run', 'check everything, change nothing', false)
    .action(async (names: string[], options: CreateOptions) => {
      const { createTopics } = await import('./topics.ts')
      outcome.code = await createTopics(io, names, options)
    })
  asAdmin(topic.command('list').alias('ls'))
    .description('list topics with their sizes')
    .option('--internal', "also the broker's own", false)
    .option('-m, --match <regex>', 'only names that match')
    .action(async (options: ListOptions) => {
      const { listTopics } = await import('./topics.ts')
      outcome.code = await listTopics(io, options)
    })
  asAdmin(topic.command('describe <name>'))
    .description('partitions, offsets, sizes and settings of a topic')
    .action(async (name: string, options: AdminOptions) => {
      const { describeTopic } = await import('./topics.ts')
      outcome.code = await describeTopic(io, name, options)
    })
  asAdmin(topic.command('alter <name>'))
    .description('change settings, add partitions')
    .option('--set <name=value>', 'set; may be repeated', collect, [])
    .option('--clear <name>', 'back to the default; may be repeated', collect, [])
    .option('-p, --partitions <total>', 'the new, larger total', toPositiveCount('--partitions'))
    .option('--dry-run', 'check everything, change nothing', false)
    .action(async (name: string, options: AlterOptions) => {
      const { alterTopic } = await import('./topics.ts')
      outcome.code = await alterTopic(io, name, options)
    })
  asAdmin(topic.command('delete <name...>').alias('rm'))
    .description('delete topics with all their records')
    .option('-y, --yes', 'do not ask', false)
    .action(async (names: string[], options: DeleteOptions) => {
      const { deleteTopics } = await import('./topics.ts')
      outcome.code = await deleteTopics(io, names, options)
    })
  asAdmin(topic.command('delete-records <name>'))
    .description('delete the oldest records, up to a position')
    .requiredOption('-b, --before <position>', 'the first to stay; see `millrace help offsets`')
    .option('-p, --partitions <list>', 'only these, such as 0,2-4', toPartitions)
    .option('-y, --yes', 'do not ask', false)
    .action(async (name: string, options: DeleteRecordsOptions) => {
      const { deleteRecords } = await import('./topics.ts')
      outcome.code = await deleteRecords(io, name, options)
    })
}

/** As commander gives them: durations have no unit in their flag's name. */
type DescribeArguments = Omit<DescribeGroupOptions, 'watchMs'> & {
  /** True: given without a time. */
  readonly watch?: number | boolean
}

const DEFAULT_WATCH_MS = 2_000

/** `--topic`, and `--partitions` under both of the names that people try. */
function withTopicPartitions(command: Command, what: string): Command {
  const hidden = new Option('--partition <list>').argParser(toPartitions).hideHelp()
  return command
    .option('-t, --topic <name,…>', what, collectNames, [])
    .option('-p, --partitions <list>', 'only these, such as 0,2-4; with one --topic', toPartitions)
    .addOption(hidden)
}

interface PartitionArguments {
  readonly partitions?: readonly number[]
  readonly partition?: readonly number[]
}

function addGroup(program: Command, io: CliIo, outcome: Outcome): void {
  const group = program
    .command('group')
    .description('list, describe, reset, export, delete consumer groups')
  asAdmin(group.command('list').alias('ls'))
    .description('list groups with their states')
    .addOption(
      new Option('--type <type>', 'only stream or queue groups').argParser(
        toChoice('--type', GROUP_TYPES),
      ),
    )
    .addOption(
      new Option('--state <state>', `only ${GROUP_STATES.join(', ')} ones`).argParser(
        toChoice('--state', GROUP_STATES),
      ),
    )
    .option('-m, --match <regex>', 'only names that match')
    .action(async (options: ListGroupsOptions) => {
      const { listGroups } = await import('./groups.ts')
      outcome.code = await listGroups(io, options)
    })
  asAdmin(group.command('describe <name>'))
    .description('members, what they own, committed offsets, lag in records and in time')
    .option('--members', 'only the members', false)
    .option('--offsets', 'only the partitions', false)
    .option('--no-time-lag', 'spare the broker the look at one record per partition that lags')
    .option(
      '-w, --watch [interval]',
      'again and again, each 2s or so often, until interrupted',
      toDurationMs('--watch'),
    )
    .action(async (name: string, { watch, ...options }: DescribeArguments) => {
      const { describeGroup } = await import('./groups.ts')
      outcome.code = await describeGroup(io, name, {
        ...options,
        watchMs: watch === true ? DEFAULT_WATCH_MS : watch === false ? undefined : watch,
      })
    })
  const reset = asAdmin(group.command('reset <name>').alias('seek'))
    .description(
      'move committed offsets of a group that nobody reads with: shows the plan, then asks',
    )
    .option('--to <position>', 'start, end, 120, -10, @-1h …, or group:OTHER')
    .option('--shift <count>', 'so many records on, or back: -100', toInteger('--shift'))
    .option('--from-file <file>', 'what `group export` wrote, JSON lines or CSV; - is stdin')
  withTopicPartitions(reset, 'only these topics; may be repeated (default: all the group has)')
    .option('-y, --yes', 'do not ask', false)
    .option('-n, --dry-run', 'only show the plan', false)
    .option('--create', 'make the group if there is none', false)
    .addHelpText(
      'after',
      '\nWithout a terminal and without --yes or --dry-run nothing is changed and the exit code is 2. See `millrace help groups`.',
    )
    .action(
      async (name: string, { partition, ...options }: ResetGroupOptions & PartitionArguments) => {
        const { resetGroup } = await import('./group-reset.ts')
        const partitions = options.partitions ?? partition
        outcome.code = await resetGroup(io, name, { ...options, partitions })
      },
    )
  withServer(group.command('export <name>'))
    .description('write committed offsets to stdout, for `group reset --from-file`')
    .addOption(
      new Option('--format <format>', 'json (one object a line) or csv')
        .default('json')
        .argParser(toChoice('--format', ['json', 'csv'])),
    )
    .action(
      async (name: string, options: { readonly server?: string; readonly format: string }) => {
        const { exportGroup } = await import('./groups.ts')
        outcome.code = await exportGroup(io, name, { ...options, csv: options.format === 'csv' })
      },
    )
  asAdmin(group.command('delete <name...>').alias('rm'))
    .description('delete groups that nobody reads with, and their committed offsets')
    .option('-y, --yes', 'do not ask', false)
    .action(async (names: string[], options: DeleteGroupsOptions) => {
      const { deleteGroups } = await import('./groups.ts')
      outcome.code = await deleteGroups(io, names, options)
    })
  withTopicPartitions(
    asAdmin(group.command('delete-offsets <name>')),
    'the topics to forget; may be repeated',
  )
    .description('forget where a group is in a topic')
    .option('-y, --yes', 'do not ask', false)
    .action(
      async (
        name: string,
        { partition, ...options }: DeleteOffsetsOptions & PartitionArguments,
      ) => {
        const { deleteOffsets } = await import('./groups.ts')
        const partitions = options.partitions ?? partition
        outcome.code = await deleteOffsets(io, name, { ...options, partitions })
      },
    )
}

function addProduce(program: Command, io: CliIo, outcome: Outcome): void {
  withServer(program.command('produce <topic> [files...]'))
    .description('send lines of stdin, or of files, as records')
    .option('-k, --key-separator <text>', 'what stands before it in a line is the key')
    .option('--key <key>', 'one key for all')
    .option('-H, --header <name=value>', 'a header for all; may be repeated', collect, [])
    .option('-p, --partition <number>', 'one partition for all', toCount('--partition'))
    .addOption(
      new Option('-a, --acks <level>', 'when a record counts as sent: none, written or durable')
        .default('durable')
        .argParser(toChoice('--acks', ACKS)),
    )
    .addOption(
      new Option('-z, --compression <codec>', 'none, lz4, gzip or zstd')
        .default('none')
        .argParser(toChoice('--compression', CODECS)),
    )
    .option('--json', 'lines are envelopes, as `tail -f json` prints them', false)
    .option('--keep-partition', 'with --json: to the partition that the envelope names', false)
    .option('-Z, --empty-is-null', 'an empty value is a tombstone', false)
    .option('-T, --tee', 'also write the lines to stdout', false)
    .option('-0, --null', 'lines end with NUL', false)
    .option('-q, --quiet', 'no summary, no progress', false)
    .action(async (name: string, files: string[], options: ProduceOptions) => {
      const { produce } = await import('./produce.ts')
      outcome.code = await produce(io, name, files, options)
    })
}

/** As commander gives them: some names and types are not those of TailOptions. */
type TailArguments = Omit<TailOptions, 'idleMs' | 'sessionTimeoutMs'> & {
  readonly idle?: number
  readonly sessionTimeout?: number
}

function addTail(program: Command, io: CliIo, outcome: Outcome): void {
  withServer(program.command('tail [topic...]'))
    .description('print records: from the start, then as they come; with -g as a member of a group')
    .option('-o, --offset <position>', 'where to begin, or a range (default: start)')
    .option('--since <duration|time>', 'begin so long ago, such as 1h')
    .option('--until <position>', 'stop before this position, such as end or @2026-01-01')
    .option('-n, --num <count>', 'stop after so many records', toCount('--num'))
    .option('-p, --partitions <list>', 'only these, such as 0,2-4', toPartitions)
    .option('-f, --format <format>', 'pretty, json, table, raw or a format string')
    .option('--follow', 'wait for more, also past what --until names')
    .option('--no-follow', 'stop at the end')
    .option('--idle <duration>', 'stop when nothing has come for so long', toDurationMs('--idle'))
    .option('--grep <regex>', 'only values that match')
    .option('-i, --ignore-case', 'for --grep', false)
    .option('--key <key>', 'only records with this key')
    .option('--header <name[=value]>', 'only with this header; may be repeated', collect, [])
    .option('--exec <command>', 'run a shell command for each; the value is its input')
    .option('-0, --null', 'end records with NUL', false)
    .option('--meta-only', 'sizes in place of keys, values and headers', false)
    .option('--offsets', 'print where partitions begin and end, no records', false)
    .option('--regex', 'names are regular expressions', false)
    .option('--pattern <regex>', 'topics that match, in place of names; with -g also new ones')
    .optionsGroup('As a member of a group:')
    .option(
      '-g, --group <name>',
      'share the topics with all who read with this group; commit what was printed',
    )
    .option(
      '--from <position>',
      'where to begin where nothing is committed: -o means that too; or none, to fail',
    )
    .option('--on-lost <position>', 'go on there when a committed offset is gone (default: fail)')
    .addOption(
      new Option(
        '--commit <when>',
        'after-each, interval (of 5s), or manual: never, only look',
      ).argParser(toChoice('--commit', COMMITS)),
    )
    .option(
      '--instance-id <id>',
      'a static member: gets back what it had when it is restarted in time',
    )
    .option(
      '--session-timeout <duration>',
      'others get its partitions when the broker has not heard of it for so long (default: 45s)',
      toDurationMs('--session-timeout'),
    )
    .addHelpText(
      'after',
      '\n-f is the format. The last 10 of each partition and what follows: -o -10. See `millrace help offsets`, `help formats`, `help groups`.',
    )
    .action(async (names: string[], { idle, sessionTimeout, ...options }: TailArguments) => {
      const { tail } = await import('./tail.ts')
      outcome.code = await tail(io, names, {
        ...options,
        idleMs: idle,
        sessionTimeoutMs: sessionTimeout,
      })
    })
}

function addDump(program: Command, io: CliIo, outcome: Outcome): void {
  program
    .command('dump <path...>')
    .description('look into segment files without a broker, and check them')
    .option('-r, --records', 'also the records', false)
    .option('-q, --quiet', 'no batches; the summary and what is damaged', false)
    .option(
      '-f, --format <format>',
      'text or json; with --records also raw or a format string, for nothing but the records',
      'text',
    )
    .action(async (paths: string[], options: DumpOptions) => {
      const { dump } = await import('./dump.ts')
      outcome.code = await dump(io, paths, options)
    })
}

function addSmall(program: Command, io: CliIo, outcome: Outcome): void {
  asAdmin(program.command('health'))
    .description('0 when the broker is healthy, 10 when not')
    .option('--wait <duration>', 'give it so long', toDurationMs('--wait'))
    .action(async ({ wait, ...options }: AdminOptions & { readonly wait?: number }) => {
      const { health } = await import('./health.ts')
      outcome.code = await health(io, { ...options, waitMs: wait })
    })
  const config = program.command('config').description('settings of the broker')
  withOutput(config.command('list'))
    .description('every setting: value, source, default, range')
    .option('--config <file>', 'settings file; else MILLRACE_CONFIG')
    .action(async (options: AdminOptions & { readonly config?: string }) => {
      const { listConfig } = await import('./config-list.ts')
      outcome.code = await listConfig(io, options)
    })
  withOutput(program.command('version'))
    .description('versions, and which codecs run here')
    .action(async (options: AdminOptions) => {
      const { version } = await import('./version.ts')
      outcome.code = await version(io, options)
    })
  program
    .command('demo [scene...]')
    .description('shows the point, on a broker of its own: log, groups, queues; a minute in all')
    .option('--fast', 'without the pauses for reading', false)
    .action(async (names: string[], options: { readonly fast: boolean }) => {
      const scenes = names.map(toChoice('scene', SCENES))
      const { demo } = await import('./demo.ts')
      outcome.code = await demo(io, scenes.length === 0 ? SCENES : scenes, options)
    })
  program
    .command('help [about...]')
    .description('help for a command, or a page: offsets, formats, groups, queues, examples')
    .action(async (about: string[]) => {
      await showHelp(program, io, about)
    })
}

/** `help tail`, `help topic create`, `help groups`. */
async function showHelp(program: Command, io: CliIo, about: readonly string[]): Promise<void> {
  const page = about[0] ?? ''
  if (about.length === 1 && PAGES.some((name) => name === page)) {
    const { HELP_PAGES } = await import('./help-pages.ts')
    io.stdout.write(HELP_PAGES[page] ?? '')
    return
  }
  let command = program
  for (const name of about) {
    const found = command.commands.find((sub) => sub.name() === name || sub.alias() === name)
    if (found === undefined) {
      const names = [...command.commands.map((sub) => sub.name()), ...PAGES]
      const nearest = findNearest(name, names, 1)[0]
      throw new UsageError(
        `there is no help about ${name}`,
        nearest === undefined
          ? `there is help about ${names.join(', ')}`
          : `did you mean ${nearest}?`,
      )
    }
    command = found
  }
  command.outputHelp()
}
