import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

export interface Usage {
  /** User and system, of all threads. */
  readonly cpuSeconds: number
  /** The most memory that was resident at any time since the start of the process. */
  readonly peakRssBytes: number
}

let ticksPerSecond: number | undefined

/** What a process has used so far, from /proc. Undefined where there is none, or when the process has ended. */
export function findUsage(pid: number): Usage | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name, in parentheses, may hold anything; the fields begin behind it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const ticks = Number(fields[11]) + Number(fields[12])
    const peakKib = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    ticksPerSecond ??= Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))
    return { cpuSeconds: ticks / ticksPerSecond, peakRssBytes: Number(peakKib) * 1024 }
  } catch {
    return undefined // No /proc, no getconf, or no such process any more.
  }
}

/** What is resident now. Undefined where there is no /proc. */
export function findRss(pid: number): number | undefined {
  try {
    const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return kib === undefined ? undefined : Number(kib) * 1024
  } catch {
    return undefined // No /proc, or no such process any more.
  }
}

/** CPU seconds between two looks, of several processes together. */
export function cpuBetween(
  before: readonly (Usage | undefined)[],
  after: readonly (Usage | undefined)[],
): number | undefined {
  let seconds = 0
  for (const [i, end] of after.entries()) {
    const start = before[i]
    if (start === undefined || end === undefined) return undefined
    seconds += end.cpuSeconds - start.cpuSeconds
  }
  return seconds
}

export function peakRss(usages: readonly (Usage | undefined)[]): number | undefined {
  const peaks = usages.map((usage) => usage?.peakRssBytes)
  return peaks.includes(undefined)
    ? undefined
    : peaks.reduce<number>((sum, peak) => sum + (peak ?? 0), 0)
}

/** What a process has read so far, from disk or cache alike, its own program included. Undefined where there is no /proc. */
export function findReadBytes(pid: number): number | undefined {
  try {
    const text = /^rchar: (\d+)$/m.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1]
    return text === undefined ? undefined : Number(text)
  } catch {
    return undefined // No /proc, or no such process any more.
  }
}
