import { afterEach, expect, it } from 'vitest'
import type { FetchMessage } from '../../src/wire/fetch-codec.ts'
import type { ProduceResultMessage } from '../../src/wire/produce-codec.ts'
import { aBatch } from '../support/batches.ts'
import { startDelayProxy } from '../support/delay-proxy.ts'
import { RawClient } from '../support/raw-client.ts'
import { startTestBroker } from '../support/test-broker.ts'

const cleanups: (() => unknown)[] = []

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

const DELAY_MS = 5
const BATCH_BYTES = 512 * 1024
const BATCHES = 64
/** With HTTP/2's own windows at most 64 KiB are on their way in a round trip: no machine, however fast, is faster than this. */
const NARROW_MS = ((BATCHES * BATCH_BYTES) / 65_536) * 2 * DELAY_MS

it('32 MiB cross a wire of 5 ms, both ways, in less than half of what narrow windows would take', async () => {
  const { broker } = await startTestBroker()
  const proxy = await startDelayProxy(broker.address, DELAY_MS)
  const client = new RawClient(proxy.address, { 'grpc-node.flow_control_window': 4 << 20 })
  cleanups.push(
    () => broker.stop(),
    () => proxy.close(),
    () => client.close(),
  )
  await client.call('CreateTopic', { topic: 'orders' })

  const upStartMs = performance.now()
  const stream = client.duplex('Produce')
  await new Promise<void>((resolve, reject) => {
    let answered = 0
    stream.on('data', (results: ProduceResultMessage[]) => (answered += results.length))
    stream.on('end', () => (answered === BATCHES ? resolve() : reject(new Error(`${answered}`))))
    stream.on('error', reject)
    const template = aBatch({ records: 1, valueBytes: BATCH_BYTES })
    for (let i = 0; i < BATCHES; i++) {
      stream.write({
        topic: 'orders',
        partition: 0,
        acks: 'durable',
        batch: Buffer.from(template),
        compression: 'none',
        correlationId: i,
      })
    }
    stream.end()
  })
  expect(performance.now() - upStartMs).toBeLessThan(NARROW_MS / 2)

  const downStartMs = performance.now()
  const fetch = client.stream('Fetch', { partitions: [{ topic: 'orders' }] })
  await new Promise<void>((resolve, reject) => {
    let bytes = 0
    fetch.on('data', (message: FetchMessage) => (bytes += message.batches?.length ?? 0))
    fetch.on('end', () =>
      bytes > BATCHES * BATCH_BYTES ? resolve() : reject(new Error(`${bytes}`)),
    )
    fetch.on('error', reject)
  })
  expect(performance.now() - downStartMs).toBeLessThan(NARROW_MS / 2)
})
