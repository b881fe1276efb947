/** One line of the table. */
export interface Measurement {
  readonly group: string
  readonly name: string
  readonly nanoseconds: number
  /** Bytes that one item moves, where a rate says more than a time. */
  readonly bytes: number | undefined
}

/** Every result goes through here, so that no loop can be thrown away as useless. */
export const sink: { value: number } = { value: 0 }

/** Short, so that some rounds are not interrupted even where others use the same processor. */
const ROUND_MS = 4
const WARM_UP_MS = 50
const ROUNDS = 60

/**
 * Nanoseconds per item of `run(times)`, which does the thing `times` times and returns a number that depends on all of it. The number
 * of times is found by doubling. The fastest round counts: whatever else the machine does can only add to it.
 */
export function measure(
  group: string,
  name: string,
  run: (times: number) => number,
  bytes?: number,
): Measurement {
  const warm = performance.now() + WARM_UP_MS
  while (performance.now() < warm) sink.value += run(16)
  let times = 16
  for (;;) {
    if (timed(run, times) > ROUND_MS || times > 2 ** 28) break
    times *= 2
  }
  const rounds = Array.from({ length: ROUNDS }, () => timed(run, times))
  return { group, name, nanoseconds: (Math.min(...rounds) / times) * 1e6, bytes }
}

/** The same for asynchronous work: a given number of times, since a disk is not to be doubled upon, and the median of the rounds. */
export async function measureAsync(
  group: string,
  name: string,
  times: number,
  run: (times: number) => Promise<number>,
  bytes?: number,
): Promise<Measurement> {
  await run(Math.ceil(times / 4))
  const rounds: number[] = []
  for (let round = 0; round < 5; round++) {
    const start = performance.now()
    sink.value += await run(times)
    rounds.push(performance.now() - start)
  }
  return { group, name, nanoseconds: (medianOf(rounds) / times) * 1e6, bytes }
}

export function printTable(measurements: readonly Measurement[]): void {
  const width = Math.max(...measurements.map(({ name }) => name.length))
  let group = ''
  for (const each of measurements) {
    if (each.group !== group) {
      group = each.group
      console.log(`\n${group}`)
    }
    const rate =
      each.bytes === undefined
        ? ''
        : `${(each.bytes / each.nanoseconds).toFixed(2).padStart(9)} GB/s`
    const time = each.nanoseconds.toFixed(each.nanoseconds < 100 ? 1 : 0).padStart(10)
    console.log(`  ${each.name.padEnd(width)} ${time} ns${rate}`)
  }
}

function timed(run: (times: number) => number, times: number): number {
  const start = performance.now()
  sink.value += run(times)
  return performance.now() - start
}

function medianOf(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? NaN
}
