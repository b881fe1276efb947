import { Cleanup } from './cleanup.ts'
import { COMMITS_OPTIONS, commitsBench } from './commits.ts'
import { COMPACT_OPTIONS, compactBench } from './compact.ts'
import { CONSUME_OPTIONS, consumeBench } from './consume.ts'
import { FANOUT_OPTIONS, fanoutBench } from './fanout.ts'
import { GROUP_CONSUME_OPTIONS, groupConsumeBench } from './group-consume.ts'
import { GROUPS_OPTIONS, groupsBench } from './groups.ts'
import { LATENCY_OPTIONS, latencyBench } from './latency.ts'
import { describeOptions, type OptionSpecs, UsageError } from './options.ts'
import { PRODUCE_OPTIONS, produceBench } from './produce.ts'
import { QUEUE_OPTIONS, queueBench } from './queue.ts'
import { formatReport, type Report, writeJson } from './report.ts'
import { START_OPTIONS, startBench } from './start.ts'

interface Command {
  readonly about: string
  readonly options: OptionSpecs
  readonly run: (argv: readonly string[], cleanup: Cleanup) => Promise<Report>
}

const COMMANDS: Readonly<Record<string, Command>> = {
  produce: {
    about: 'producers as fast as they go, or at a rate',
    options: PRODUCE_OPTIONS,
    run: produceBench,
  },
  consume: {
    about: 'readers of what is there, or of what is being written',
    options: CONSUME_OPTIONS,
    run: consumeBench,
  },
  latency: {
    about: 'from the time a record was meant to be sent until a reader has it, at a fixed rate',
    options: LATENCY_OPTIONS,
    run: latencyBench,
  },
  fanout: {
    about: 'many readers of one partition while it is written, and one that has stopped',
    options: FANOUT_OPTIONS,
    run: fanoutBench,
  },
  start: {
    about: 'a start with many partitions and much (sparse) data, clean and after kill -9',
    options: START_OPTIONS,
    run: startBench,
  },
  compact: {
    about:
      'what producers and memory notice of a compaction, and whether every key is right after it',
    options: COMPACT_OPTIONS,
    run: compactBench,
  },
  groups: {
    about: 'how long groups take to settle, and what members that are not concerned notice of it',
    options: GROUPS_OPTIONS,
    run: groupsBench,
  },
  commits: {
    about: 'durable commits of many members, and of one alone, through kill -9',
    options: COMMITS_OPTIONS,
    run: commitsBench,
  },
  'group-consume': {
    about: 'reading as the member of a group beside plain reading',
    options: GROUP_CONSUME_OPTIONS,
    run: groupConsumeBench,
  },
  queue: {
    about:
      'work queues: leases and acks, sends, latency to a handler, delayed records, a redrive (--part)',
    options: QUEUE_OPTIONS,
    run: queueBench,
  },
}

const EXIT_FAILED = 1
const EXIT_USAGE = 2

async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv
  const command = COMMANDS[name ?? '']
  if (command === undefined || rest.includes('--help')) {
    console.log(help(name))
    return command === undefined && name !== undefined && name !== '--help' ? EXIT_USAGE : 0
  }
  await using cleanup = new Cleanup()
  let isInterrupted = false
  const interrupt = (signal: NodeJS.Signals): void => {
    // A second one ends it at once; the children go with it.
    if (isInterrupted) process.exit(signal === 'SIGINT' ? 130 : 143)
    isInterrupted = true
    console.error(`${signal}: cleaning up`)
    cleanup
      .run()
      .catch((error: unknown) => console.error(error))
      .finally(() => process.exit(signal === 'SIGINT' ? 130 : 143))
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)
  try {
    const report = await command.run(rest, cleanup)
    console.log(formatReport(report))
    const file = report.options['json']
    if (typeof file === 'string') writeJson(report, file)
    return 0
  } catch (error) {
    // What was interrupted fails in many ways; that is not news.
    if (isInterrupted) await new Promise(() => undefined)
    if (error instanceof UsageError) {
      console.error(`error: ${error.message}`)
      return EXIT_USAGE
    }
    console.error('the benchmark failed, its numbers are worth nothing:', error)
    return EXIT_FAILED
  }
}

function help(name: string | undefined): string {
  const command = COMMANDS[name ?? '']
  if (command !== undefined) {
    return `npm run bench -- ${name ?? ''} [options]: ${command.about}\n\n${describeOptions(command.options)}`
  }
  const rows = Object.entries(COMMANDS).map(([word, { about }]) => `  ${word.padEnd(13)}  ${about}`)
  return `npm run bench -- COMMAND [options]\n\n${rows.join('\n')}\n\nCOMMAND --help shows its options. bench:micro measures single steps.`
}

process.exitCode = await main(process.argv.slice(2))
