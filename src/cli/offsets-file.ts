import { compareTopicPartitions } from './partition-names.ts'
import { UsageError } from './usage-error.ts'
import type { GroupOffset, TopicPartition } from '../client/index.ts'

/** What `group export` writes and `group reset --from-file` reads. */
export interface OffsetEntry extends TopicPartition {
  readonly offset: number
}

const SHAPES =
  'a line is {"topic":"orders","partition":0,"offset":120}, or orders,0,120; `millrace group export NAME` writes such a file'

/** One JSON object a line, by topic and partition. Metadata is there to be read; a reset does not bring it back. */
export function formatOffsetsAsJson(offsets: readonly GroupOffset[]): string {
  return [...offsets]
    .sort(compareTopicPartitions)
    .map(({ topic, partition, offset, metadata }) =>
      JSON.stringify(
        metadata === '' ? { topic, partition, offset } : { topic, partition, offset, metadata },
      ),
    )
    .map((line) => `${line}\n`)
    .join('')
}

/** Kafka's own order of columns. No quotes: no name of a topic needs them. */
export function formatOffsetsAsCsv(offsets: readonly OffsetEntry[]): string {
  const rows = [...offsets]
    .sort(compareTopicPartitions)
    .map(({ topic, partition, offset }) => `${topic},${partition},${offset}\n`)
  return `topic,partition,offset\n${rows.join('')}`
}

/**
 * Reads JSON lines or CSV (`topic,partition,offset`, with or without that heading), also mixed. Empty lines and lines that begin with `#` count for nothing.
 * @throws UsageError that names the line; when a partition comes twice; when there is nothing in it
 */
export function parseOffsets(text: string, file: string): readonly OffsetEntry[] {
  const entries = new Map<string, OffsetEntry>()
  for (const [index, raw] of text
    .replace(/^\uFEFF/, '')
    .split('\n')
    .entries()) {
    const line = raw.trim()
    if (line === '' || line.startsWith('#') || isHeading(line)) continue
    const place = `${file}, line ${index + 1}`
    const entry = line.startsWith('{') ? parseJsonLine(line, place) : parseCsvLine(line, place)
    const key = `${entry.topic}/${entry.partition}`
    if (entries.has(key)) throw new UsageError(`${place}: ${key} comes a second time`)
    entries.set(key, entry)
  }
  if (entries.size === 0) throw new UsageError(`${file} has no offsets in it`, SHAPES)
  return [...entries.values()].sort(compareTopicPartitions)
}

function isHeading(line: string): boolean {
  return /^"?topic"?\s*,\s*"?partition"?\s*,\s*"?offset"?/i.test(line)
}

function parseJsonLine(line: string, place: string): OffsetEntry {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new UsageError(`${place} is no JSON: ${why}`, SHAPES)
  }
  const field = (name: string): unknown =>
    typeof value === 'object' && value !== null
      ? Object.entries(value).find(([key]) => key === name)?.[1]
      : undefined
  return toEntry(field('topic'), field('partition'), field('offset'), place)
}

function parseCsvLine(line: string, place: string): OffsetEntry {
  const cells = line.split(',').map((cell) => cell.trim().replace(/^"(.*)"$/, '$1'))
  if (cells.length !== 3) {
    throw new UsageError(`${place} has ${cells.length} columns where 3 belong`, SHAPES)
  }
  const [topic, partition, offset] = cells
  return toEntry(topic, toNumber(partition), toNumber(offset), place)
}

function toNumber(text: string | undefined): unknown {
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : text
}

function toEntry(topic: unknown, partition: unknown, offset: unknown, place: string): OffsetEntry {
  if (typeof topic !== 'string' || topic === '') {
    throw new UsageError(`${place} names no topic`, SHAPES)
  }
  return {
    topic,
    partition: toIndex('partition', partition, place),
    offset: toIndex('offset', offset, place),
  }
}

function toIndex(name: string, value: unknown, place: string): number {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  const shown = value === undefined ? 'is missing' : `${JSON.stringify(value)} is no number from 0`
  throw new UsageError(`${place}: the ${name} ${shown}`, SHAPES)
}
