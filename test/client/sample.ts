/** The sample of the public API, as far as it exists: compiled with everything else, never run. */
import {
  type Client,
  connect,
  json,
  MillraceError,
  type Offset,
  text,
  topic,
} from '../../src/client/index.ts'

interface Order {
  id: string
  country: string
  cents: number
}

const orders = topic('orders', { value: json<Order>() })

export async function sample(): Promise<void> {
  await using mill = await connect() // MILLRACE_SERVER, else localhost
  await mill.admin.createTopic('orders', { partitions: 6, ifNotExists: true })

  // Produce: batching, idempotence and retries are on; a receipt means it is on disk.
  await using producer = mill.producer({ lingerMs: 5, compression: 'lz4' })
  const receipt = await producer.send(orders, {
    key: 'c-17',
    value: { id: 'o-1', country: 'DE', cents: 4200 },
  })
  console.log(`order is at ${receipt.partition}:${receipt.offset}`)

  for (let i = 0; i < 1_000_000; i++) {
    const order: Order = { id: `o-${i}`, country: 'FR', cents: i }
    if (!producer.post(orders, { key: order.id, value: order })) await producer.ready()
  }
  await producer.flush()

  // Pub/sub and replay: no group, nothing remembered; the last hour, then stop.
  for await (const { offset, value } of mill.read(orders, { from: '@-1h', until: 'end' })) {
    if (value?.country === 'DE') console.log(offset, value.cents)
  }
}

export async function byBatch(mill: Client): Promise<number> {
  let bytes = 0
  const stop = new AbortController()
  for await (const batch of mill.read(orders, { signal: stop.signal }).batches()) {
    const cursor = batch.cursor()
    while (cursor.next()) bytes += cursor.valueEnd - cursor.valueStart
  }
  return bytes
}

export async function wrongly(mill: Client, offset: Offset): Promise<void> {
  const producer = mill.producer()
  // @ts-expect-error: a number is no Order
  await producer.send(orders, { value: 5 })
  // @ts-expect-error: keys of orders are text
  await producer.send(orders, { key: 5, value: null })
  // @ts-expect-error: an offset counts records: it does not come from just any number
  mill.read(topic('lines', { value: text }), { from: 5 })
  mill.read(topic('lines', { value: text }), { from: offset })
  try {
    await producer.flush()
  } catch (error) {
    if (error instanceof MillraceError && error.retryable) console.log(error.code, error.remedy)
    else throw error
  }
}
