/** The sample of the public API, as far as it exists: compiled with everything else, never run. */
import {
  type Client,
  connect,
  json,
  MillraceError,
  type Offset,
  RejectError,
  ReleaseError,
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

/** A stream group as an iterator: asking for the next record says that the last one is finished. */
export async function bill(mill: Client, stop: AbortSignal): Promise<void> {
  const emails = topic('emails', { value: text })
  await using producer = mill.producer()
  for await (const order of mill.consumer(orders, { group: 'billing', signal: stop })) {
    if (order.value !== null) await producer.send(emails, { value: order.value.id })
  }
}

/** The same with a handler: 32 at once, one at a time per key. */
export async function index(mill: Client): Promise<void> {
  const search = mill.consumer(orders, { group: 'search' })
  search.on('revoked', (partitions) => console.log('gave up', partitions))
  await search.run(
    async ({ value }, { signal }) => {
      await fetch('http://localhost:9200/_doc', {
        method: 'POST',
        body: JSON.stringify(value),
        signal,
      })
    },
    { concurrency: 32, ordered: 'key', onError: { deadLetter: 'orders.failed', attempts: 3 } },
  )
}

/** Several topics at once, each with its own codecs; and whatever a pattern finds, as bytes. */
export async function everything(mill: Client): Promise<void> {
  const lines = topic('lines', { value: text })
  for await (const { value } of mill.consumer([orders, lines], { group: 'all' })) {
    const either: Order | string | null = value
    console.log(either)
    // @ts-expect-error: it may be a line as well
    console.log(value?.country)
  }
  for await (const { value } of mill.consumer(/^logs\./, { group: 'logs' })) {
    console.log(value?.length)
  }
}

/** A work queue on the same log: return accepts, throwing retries with backoff. */
export async function mail(mill: Client): Promise<void> {
  const emails = topic('emails', { value: json<{ to: string; template: string }>() })
  const options = { group: 'mailer', concurrency: 50, leaseMs: 30_000 }
  await using mailer = mill.worker(emails, options, async (job, { signal }) => {
    if (job.value === null) throw new RejectError('empty mail') // Straight to the dead letters.
    const answer = await fetch('http://localhost:2525', { method: 'POST', signal })
    if (answer.status === 429) throw new ReleaseError({ delayMs: 10_000 }) // Not a failure, just later.
    console.log(`sent on try ${job.deliveryCount}`)
    return { status: answer.status }
  })
  mailer.on('completed', ({ result }) => console.log(result.status))
  for await (const event of mailer.events()) {
    if (event.type === 'dead') console.error(event.job.offset, event.error)
  }
  mill.worker(emails, { group: 'images', threads: 4 }, new URL('file:///srv/resize.js'))
  mill.batchWorker(emails, { group: 'archive', batchSize: 500 }, async (jobs) => {
    await Promise.all(jobs.map((job) => job.accept()))
  })
  // By hand, for short-lived functions.
  for await (const job of mill.receive(emails, { group: 'mailer', max: 10, waitMs: 20_000 })) {
    try {
      await job.accept()
    } catch (error) {
      await job.retry(error, { delayMs: 5_000 })
    }
  }
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
