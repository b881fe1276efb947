import type { Cleanup } from './cleanup.ts'
import { BenchEnvironment, COMMON_OPTIONS } from './environment.ts'
import { measureMove } from './group-move.ts'
import { measureSettling } from './group-settling.ts'
import { findMachineFacts } from './machine.ts'
import { type OptionSpecs, parseOptions, UsageError } from './options.ts'
import { mediansOf, type Report, type RunFigures } from './report.ts'

const SPECS = {
  part: {
    kind: 'choice',
    default: 'both',
    choices: ['both', 'settle', 'move'],
    about: 'a large group that settles; one more consumer in a small one that is at work',
  },
  members: { kind: 'count', default: '1000', least: 1, about: 'settle: members of the group' },
  partitions: {
    kind: 'count',
    default: '10000',
    least: 1,
    about: 'settle: of all topics together',
  },
  topics: { kind: 'count', default: '10', least: 1, about: 'settle: topics that all subscribe to' },
  leavers: { kind: 'count', default: '100', least: 1, about: 'settle: members that go at once' },
  processes: { kind: 'count', default: '2', least: 1, about: 'settle: that members run in' },
  consumers: { kind: 'count', default: '9', least: 1, about: 'move: before one more comes' },
  movePartitions: { kind: 'count', default: '90', least: 1, about: 'move: of the topic' },
  tick: {
    kind: 'duration',
    default: '50ms',
    least: 1,
    about: 'move: from one record of a partition to its next',
  },
  window: {
    kind: 'duration',
    default: '5s',
    least: 1,
    about: 'move: watched before the last one comes, and again from then on',
  },
  acks: {
    kind: 'choice',
    default: 'written',
    choices: ['written', 'durable'],
    about: 'move: of the producer, and what readers may see',
  },
  ...COMMON_OPTIONS,
} as const satisfies OptionSpecs

export const GROUPS_OPTIONS: OptionSpecs = SPECS

/** Large enough for the stamp, small enough that bytes do not matter. */
const MOVE_PAYLOAD_BYTES = 64

/** How long groups take to settle, and what the members that are not concerned notice of it. */
export async function groupsBench(argv: readonly string[], cleanup: Cleanup): Promise<Report> {
  const options = parseOptions(SPECS, argv)
  if (options.leavers >= options.members) {
    throw new UsageError('--leavers: somebody has to stay, so less than --members')
  }
  const environment = new BenchEnvironment(options, cleanup)
  const machine = findMachineFacts(environment.folder)
  const runs: RunFigures[] = []
  let moves = 0
  let records = 0
  for (let run = 1; run <= options.runs; run++) {
    console.error(`run ${run} of ${options.runs} …`)
    let figures: RunFigures = {}
    if (options.part !== 'move') {
      const settled = await measureSettling(environment, options)
      moves += settled.moves
      figures = { ...figures, ...settled.figures }
    }
    if (options.part !== 'settle') {
      console.error('  one more consumer …')
      const moved = await measureMove(environment, {
        consumers: options.consumers,
        partitions: options.movePartitions,
        tickMs: options.tick,
        windowMs: options.window,
        acks: options.acks,
        payload: MOVE_PAYLOAD_BYTES,
        seed: options.seed,
      })
      records += moved.records
      figures = { ...figures, ...moved.figures }
    }
    runs.push(figures)
  }
  const verified: string[] = []
  if (options.part !== 'move') {
    verified.push(
      `Settle: after each step members and broker agreed on who owns what, each partition once; of ${moves} times that a partition came to a member, ` +
        'none was before the former owner had given it up. Taken: from the first call until the last answer; settle: from then until the last partition came to its ' +
        'owner; stall: the longest delay of the event loop of the broker, 10 ms of resolution included, joins and all.',
    )
  }
  if (options.part !== 'settle') {
    verified.push(
      `Move: acks ${options.acks}; all ${records} records that consumers got, offsets and bytes, were compared as they came, and every one that was written came. A pause is the longest time ` +
        `without a record of a partition, of which one is written every ${options.tick} ms.`,
    )
  }
  return {
    command: 'groups',
    options,
    machine,
    runs,
    medians: mediansOf(runs),
    verified: verified.join('\n'),
  }
}
