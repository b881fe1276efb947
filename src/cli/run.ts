import { Command, Option } from 'commander'
import {
  collect,
  toChoice,
  toCount,
  toDurationMs,
  toPartitions,
  toPositiveCount,
} from './arguments.ts'
import type { CliIo } from './io.ts'
import { EXIT_DONE } from './io.ts'
import { reportError } from './report-error.ts'
import { UsageError } from './usage-error.ts'
import type { DumpOptions } from './dump.ts'
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
const OUTPUTS = ['text', 'json'] as const
const PAGES = ['offsets', 'formats', 'examples'] as const

/** Keeps the exit code of the command that ran. */
interface Outcome {
  code: number
}

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
      '\nmillrace help offsets, help formats and help examples say more. Exit codes: 0 done, 1 failed, 2 usage,\n' +
        '10 unhealthy, 73 data directory in use, 74 storage failed, 130 interrupted.',
    )
  program.command('serve').description('run a broker')
  addTopic(program, io, outcome)
  addProduce(program, io, outcome)
  addTail(program, io, outcome)
  addDump(program, io, outcome)
  addSmall(program, io, outcome)
  return program
}

function withServer(command: Command): Command {
  return command.option(
    '-s, --server <host:port>',
    'the broker; else MILLRACE_SERVER, else localhost:9292',
  )
}

function withOutput(command: Command): Command {
  return command.addOption(
    new Option('--format <format>', 'text or json')
      .default('text')
      .argParser(toChoice('--format', OUTPUTS)),
  )
}

function asAdmin(command: Command): Command {
  return withOutput(withServer(command))
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
type TailArguments = Omit<TailOptions, 'idleMs'> & {
  readonly idle?: number
}

function addTail(program: Command, io: CliIo, outcome: Outcome): void {
  withServer(program.command('tail <topic...>'))
    .description('print records: from the start, then as they come')
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
    .addHelpText(
      'after',
      '\n-f is the format. The last 10 of each partition and what follows: -o -10. See `millrace help offsets`, `help formats`.',
    )
    .action(async (names: string[], { idle, ...options }: TailArguments) => {
      const { tail } = await import('./tail.ts')
      outcome.code = await tail(io, names, { ...options, idleMs: idle })
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
    .command('demo')
    .description('twenty seconds that show the point, on a broker of its own')
    .option('--fast', 'without the pauses for reading', false)
    .action(async (options: { readonly fast: boolean }) => {
      const { demo } = await import('./demo.ts')
      outcome.code = await demo(io, options)
    })
  program
    .command('help [about...]')
    .description('help for a command, or a page: offsets, formats, examples')
    .action(async (about: string[]) => {
      await showHelp(program, io, about)
    })
}

/** `help tail`, `help topic create`, `help offsets`. */
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
