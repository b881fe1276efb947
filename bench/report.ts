import { writeFileSync } from 'node:fs'
import { formatBytes } from '../src/common/units.ts'
import { Histogram, type HistogramCounts } from './histogram.ts'
import type { MachineFacts } from './machine.ts'
import type { Rate } from './options.ts'

/** Numbers of one run, by name. The unit ends the name, and the table shows it by that. */
export type RunFigures = Readonly<Record<string, number | undefined>>

export interface Report {
  readonly command: string
  readonly options: Readonly<Record<string, unknown>>
  readonly machine: MachineFacts
  readonly runs: readonly RunFigures[]
  readonly medians: RunFigures
  /** What was checked, in words. */
  readonly verified: string
}

const PERCENTILES: readonly (readonly [string, number])[] = [
  ['P50', 50],
  ['P90', 90],
  ['P99', 99],
  ['P999', 99.9],
  ['P9999', 99.99],
]

/** `ackP50Ms` … `ackMaxMs`, or nothing when there is nothing to show. */
export function latencyFigures(name: string, counts: HistogramCounts): RunFigures {
  const histogram = new Histogram(counts)
  const figures: Record<string, number | undefined> = {}
  for (const [label, percent] of PERCENTILES) {
    figures[`${name}${label}Ms`] =
      histogram.count === 0 ? undefined : histogram.percentile(percent) / 1000
  }
  figures[`${name}MaxMs`] = histogram.count === 0 ? undefined : histogram.max / 1000
  return figures
}

export function throughputFigures(records: number, ms: number, payloadBytes: number): RunFigures {
  const recordsPerSecond = (records / ms) * 1000
  return { recordsPerSecond, mbPerSecond: (recordsPerSecond * payloadBytes) / 1e6 }
}

/** The median of each figure over the runs. */
export function mediansOf(runs: readonly RunFigures[]): RunFigures {
  const medians: Record<string, number | undefined> = {}
  for (const name of Object.keys(runs[0] ?? {})) {
    const values = runs.map((run) => run[name]).filter((value) => value !== undefined)
    const sorted = values.sort((a, b) => a - b)
    const upper = sorted[sorted.length >> 1]
    const lower = sorted[(sorted.length - 1) >> 1]
    medians[name] = upper === undefined || lower === undefined ? undefined : (lower + upper) / 2
  }
  return medians
}

/** The report as people read it: a line per figure, a column per run, the median last. */
export function formatReport(report: Report): string {
  const { machine, runs, medians } = report
  const settings = Object.entries(report.options)
    .filter(([, value]) => value !== undefined && value !== false)
    .map(([name, value]) => `${name}=${formatOption(value)}`)
  const lines = [
    `${report.command}  ${settings.join(' ')}`,
    `${machine.cores} x ${machine.cpu}, ${formatBytes(machine.memoryBytes)}, ${machine.platform} ${machine.kernel}, ${machine.fileSystem}, load ${machine.loadAverage}`,
    `millrace ${machine.millrace} (${machine.commit}), node ${machine.node}, grpc-js ${machine.grpc}, crc32c ${machine.crc32c}, lz4 ${machine.lz4}`,
    '',
  ]
  const columns = [...runs.map((_, i) => `run ${i + 1}`), 'median']
  const rows: (readonly string[])[] = [['', ...columns]]
  for (const name of Object.keys(medians)) {
    if (medians[name] === undefined) continue
    rows.push([labelOf(name), ...[...runs, medians].map((figures) => format(name, figures[name]))])
  }
  const widths = rows[0]?.map((_, at) => Math.max(...rows.map((row) => row[at]?.length ?? 0))) ?? []
  for (const row of rows) {
    const cells = row.map((cell, at) =>
      at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0),
    )
    lines.push(cells.join('  ').trimEnd())
  }
  lines.push('', report.verified, '')
  return lines.join('\n')
}

function formatOption(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value)
  const { perSecond, unit } = value as Rate // The only option that is an object.
  return `${perSecond} ${unit}/s`
}

export function writeJson(report: Report, file: string): void {
  writeFileSync(file, `${JSON.stringify(report, undefined, 2)}\n`)
}

const UNITS: readonly (readonly [suffix: string, unit: string])[] = [
  ['Ms', 'ms'],
  ['Seconds', 's'],
  ['Bytes', 'MiB'],
]

/** `brokerCpuSeconds` becomes `broker cpu, s`; `recordsPerSecond` becomes `records/s`. */
function labelOf(name: string): string {
  if (name === 'mbPerSecond') return 'MB/s'
  if (name.endsWith('PerSecond')) return `${toWords(name.slice(0, -'PerSecond'.length))}/s`
  const [suffix, unit] = UNITS.find(([suffix]) => name.endsWith(suffix)) ?? ['', '']
  const words = toWords(name.slice(0, name.length - suffix.length))
  return unit === '' ? words : `${words}, ${unit}`
}

function toWords(name: string): string {
  return name
    .replaceAll(/[A-Z]+/g, (letters) => ` ${letters.toLowerCase()}`)
    .replace(/\bp999(9?)$/, (_, nine: string) => `p99.9${nine}`)
    .trim()
}

function format(name: string, value: number | undefined): string {
  if (value === undefined) return '-'
  if (name.endsWith('Bytes')) return (value / 2 ** 20).toFixed(1)
  if (name.startsWith('mb')) return value.toFixed(1)
  if (name.endsWith('Ms') || name.endsWith('Seconds')) return value.toFixed(value < 100 ? 2 : 0)
  return new Intl.NumberFormat('en').format(Math.round(value))
}
