import { BrokerError } from '../../src/common/errors.ts'
import type { Offset } from '../../src/common/offset.ts'
import type {
  AckFailure,
  AckItem,
  QueueDelivery,
  QueuePartitionDescription,
  Verdict,
} from '../../src/coordination/queue/queue-types.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { QUEUE_GROUP, QUEUE_TOPIC, type QueueBench } from './queue-bench.ts'

export interface ReadLetter {
  readonly value: string | undefined
  readonly headers: Readonly<Record<string, string>>
}

/** All records of a partition. */
export async function readAll(bench: QueueBench, topic: string, index = 0): Promise<ReadLetter[]> {
  const partition = bench.topics.getPartition(topic, index)
  const found: ReadLetter[] = []
  let from: Offset = partition.logStartOffset
  while (from < partition.highWatermark) {
    const { chunks, nextOffset } = await partition.read(from, 1 << 20)
    for (const chunk of chunks) found.push(...readChunk(chunk))
    from = nextOffset
  }
  return found
}

function readChunk(chunk: Uint8Array): ReadLetter[] {
  const found: ReadLetter[] = []
  const cursor = new RecordCursor()
  for (let at = 0; at < chunk.length;) {
    cursor.reset(chunk, at)
    while (cursor.next()) {
      const { bytes, valueStart, valueEnd } = cursor
      const value =
        valueStart < 0 ? undefined : Buffer.from(bytes.subarray(valueStart, valueEnd)).toString()
      const headers: Record<string, string> = {}
      for (const header of cursor.readHeaders())
        headers[header.key] = Buffer.from(header.value ?? []).toString()
      found.push({ value, headers })
    }
    at += 12 + new DataView(chunk.buffer, chunk.byteOffset + at + 8, 4).getUint32(0)
  }
  return found
}

/** Values of the records delivered, as far as the lease goes. */
export function valuesOf(delivery: QueueDelivery): string[] {
  const cursor = new RecordCursor()
  cursor.reset(delivery.batch, 0)
  const values: string[] = []
  while (cursor.next()) {
    const { offset, bytes, valueStart, valueEnd } = cursor
    if (offset >= delivery.first && offset < delivery.end)
      values.push(Buffer.from(bytes.subarray(valueStart, valueEnd)).toString())
  }
  return values
}

export async function describePartition(
  bench: QueueBench,
  index = 0,
  topic: string = QUEUE_TOPIC,
): Promise<QueuePartitionDescription> {
  const { topics } = await bench.queues.describe(QUEUE_GROUP)
  const found = topics
    .flatMap((one) => one.partitions)
    .find((one) => one.topic === topic && one.partition === index)
  if (found === undefined) throw new Error(`${topic}-${index} is not worked on`)
  return found
}

export function anItem(
  delivery: Pick<QueueDelivery, 'token' | 'first' | 'end'>,
  verdict: Verdict,
  more: Partial<AckItem> = {},
): AckItem {
  return {
    token: delivery.token,
    first: delivery.first,
    end: delivery.end,
    verdict,
    delayMs: undefined,
    error: undefined,
    pauseGroupMs: 0,
    ...more,
  }
}

export function codesOf(failures: readonly AckFailure[]): string[] {
  return failures.map(({ error }) => error.code)
}

/** What a call was refused with. */
export async function refusalOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'OK'
  } catch (error) {
    if (error instanceof BrokerError) return error.code
    throw error
  }
}

/** Offsets that hold no record: a control batch. */
export async function produceGap(bench: QueueBench, partition = 0): Promise<void> {
  const builder = new BatchBuilder({ maxBytes: 1024 })
  builder.tryAppend('k', undefined, bench.clock.wallMs())
  builder.setControl()
  await bench.topics
    .getPartition(QUEUE_TOPIC, partition)
    .append(builder.finish(), 'durable', { allowControl: true })
}
