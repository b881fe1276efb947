import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { DemoBroker, Narrator } from './demo-parts.ts'
import { EXIT_DONE, EXIT_FAILED } from './io.ts'
import { formatCount } from './progress-line.ts'
import { ExitError } from './usage-error.ts'
import { connect, text, topic } from '../client/index.ts'
import type { Client, Producer, Receipt } from '../client/index.ts'
import { formatBytes } from '../common/units.ts'

const PARTITIONS = 3
const FIRST_ORDERS = 60_000
const CRASH_ORDERS = 40_000
/** How far the second part has come when the broker is killed. */
const KILL_AFTER = 12_000
const COUNTRIES = ['DE', 'FR', 'PL', 'IT', 'NL', 'ES'] as const
const orders = topic('orders', { value: text })

/**
 * The scene of the log: produce, two readers, replay from the start, kill -9 in mid-stream, restart, and every acknowledged record is where its
 * receipt says, once, in order. Resolves to 0 only if that is so.
 */
export async function showLog(
  show: Narrator,
  broker: DemoBroker,
  directory: string,
  signal: AbortSignal,
): Promise<number> {
  await show.step('A broker starts, on an empty folder. It is one Node process; nothing else runs.')
  const address = await broker.start('127.0.0.1:0')
  show.line(`millrace serve --data ${directory}   → listening on ${address}`)
  await using client = await connect({ url: address, clientId: 'demo', timeoutMs: 10_000 })
  await client.admin.createTopic('orders', { partitions: PARTITIONS })
  show.line(`millrace topic create orders --partitions ${PARTITIONS}`)

  await show.step(
    `A producer sends ${formatCount(FIRST_ORDERS)} orders. Each is acknowledged only after fdatasync. Two readers follow, independently.`,
  )
  const billing = new Follower(client, 'billing', signal)
  const search = new Follower(client, 'search ', signal)
  const ledger = new Ledger()
  // `await using` would flush once more, into a broker that may be gone when something has failed.
  const producer = client.producer()
  const startedMs = performance.now()
  await sendOrders(producer, ledger, 0, FIRST_ORDERS, signal)
  const elapsedMs = performance.now() - startedMs
  await Promise.all([billing.waitFor(FIRST_ORDERS), search.waitFor(FIRST_ORDERS)])
  show.line(
    `produced ${formatCount(FIRST_ORDERS)} durable records in ${Math.round(elapsedMs)} ms ` +
      `(${formatCount(Math.round((FIRST_ORDERS / elapsedMs) * 1000))} a second, a receipt for each)`,
  )
  show.line(
    `billing has read ${formatCount(billing.count)}, search has read ${formatCount(search.count)}`,
  )

  await show.step(
    'Reading deletes nothing. A third reader, who comes late, replays everything from the start.',
  )
  const replay = await readAll(client)
  show.line(
    `replayed ${formatCount(replay.size)} records; the first is ${JSON.stringify(replay.first)}`,
  )
  if (replay.size !== FIRST_ORDERS) return show.failure(`${FIRST_ORDERS} were sent`)

  await show.step('Now the producer goes on, and in mid-stream the broker is killed with kill -9.')
  const sending = sendOrders(producer, ledger, FIRST_ORDERS, CRASH_ORDERS, signal)
  // Looked at below; until then its failure must not end the process.
  sending.catch(() => undefined)
  await ledger.waitFor(FIRST_ORDERS + KILL_AFTER, sending)
  broker.kill()
  await broker.ended()
  const acknowledged = ledger.count
  show.line(
    `kill -9: the broker is gone. ${formatCount(acknowledged)} orders are acknowledged; the rest is in the producer's hands.`,
  )
  await show.pause()

  await show.step(
    'It starts again on the same folder. Producer and readers reconnect by themselves; nobody wrote code for it.',
  )
  const restartMs = performance.now()
  await broker.start(address)
  show.line(`ready again after ${Math.round(performance.now() - restartMs)} ms, recovery included`)
  await sending
  await producer.close()
  const total = FIRST_ORDERS + CRASH_ORDERS
  await Promise.all([billing.waitFor(total), search.waitFor(total)])
  show.line(`the producer finished: ${formatCount(ledger.count)} receipts`)
  show.line(
    `billing has read ${formatCount(billing.count)}, search has read ${formatCount(search.count)}`,
  )

  await show.step(
    'The count. Every receipt names a partition and an offset: is the order there, once, and nothing else?',
  )
  const found = await readAll(client)
  const problems = ledger.compare(found)
  await billing.stop()
  await search.stop()
  if (problems.length > 0) return show.failure(problems.join('; '))
  const bytes = await sizeOfOrders(directory)
  show.line(`${formatCount(found.size)} records found, ${formatCount(total)} sent`)
  show.line('nothing lost, nothing twice, every offset as promised')
  show.line(`on the disk: ${formatBytes(bytes)}, in Kafka's own segment format`)
  return EXIT_DONE
}

/** Sends orders without waiting for each; the ledger keeps each receipt. */
async function sendOrders(
  producer: Producer,
  ledger: Ledger,
  first: number,
  count: number,
  signal: AbortSignal,
): Promise<void> {
  const pending: Promise<void>[] = []
  for (let i = first; i < first + count; i++) {
    const country = COUNTRIES[i % COUNTRIES.length] ?? 'DE'
    const value = `{"order":${i},"country":"${country}","cents":${(i * 7919) % 100_000}}`
    const sent = producer.send(orders, { key: `customer-${i % 997}`, value })
    pending.push(sent.then((receipt) => ledger.note(receipt, value)))
    if (pending.length === 5_000) {
      await Promise.all(pending)
      pending.length = 0
      if (signal.aborted) return
    }
  }
  await Promise.all(pending)
}

interface Found {
  readonly size: number
  readonly first: string
  /** By partition, by offset. */
  readonly values: readonly ReadonlyMap<number, string>[]
}

async function readAll(client: Client): Promise<Found> {
  const values = Array.from({ length: PARTITIONS }, () => new Map<number, string>())
  let size = 0
  let first = ''
  for await (const record of client.read(orders, { from: 'start', until: 'end' })) {
    if (size++ === 0) first = record.value ?? ''
    values[record.partition]?.set(record.offset, record.value ?? '')
  }
  return { size, first, values }
}

/** What was promised. */
class Ledger {
  readonly #promised = Array.from({ length: PARTITIONS }, () => new Map<number, string>())
  #waiters: { readonly count: number; readonly resolve: () => void }[] = []
  count = 0

  note(receipt: Receipt, value: string): void {
    this.#promised[receipt.partition]?.set(receipt.offset, value)
    this.count++
    if (this.#waiters.length === 0) return
    for (const waiter of this.#waiters) if (this.count >= waiter.count) waiter.resolve()
    this.#waiters = this.#waiters.filter((waiter) => this.count < waiter.count)
  }

  /** Resolves when so many receipts are there; rejects with what the sending fails with before. */
  waitFor(count: number, sending: Promise<void>): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.count >= count) resolve()
      this.#waiters.push({ count, resolve })
      sending.then(resolve, reject)
    })
  }

  compare(found: Found): string[] {
    const problems: string[] = []
    let promised = 0
    for (const [partition, values] of this.#promised.entries()) {
      for (const [offset, value] of values) {
        promised++
        const there = found.values[partition]?.get(offset)
        if (there === value) continue
        if (problems.length < 5) {
          problems.push(
            `orders-${partition} at ${offset}: ${there ?? 'nothing'} where ${value} was promised`,
          )
        }
      }
    }
    if (promised !== this.count) problems.push('two receipts name one offset')
    if (found.size !== promised) problems.push(`${found.size} records for ${promised} receipts`)
    return problems
  }
}

/** A reader that follows the topic and counts. */
class Follower {
  readonly #stop = new AbortController()
  readonly #done: Promise<void>
  readonly #name: string
  #failure: unknown
  #wake: (() => void) | undefined
  count = 0

  constructor(client: Client, name: string, signal: AbortSignal) {
    this.#name = name.trim()
    signal.addEventListener('abort', () => this.#stop.abort(), { once: true })
    this.#stop.signal.addEventListener('abort', () => this.#wake?.(), { once: true })
    this.#done = this.#follow(client).catch((error: unknown) => {
      this.#failure = error
      this.#wake?.()
    })
  }

  async waitFor(count: number): Promise<void> {
    while (this.count < count && this.#failure === undefined && !this.#stop.signal.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    if (this.#failure !== undefined) throw this.#failure
    if (this.count > count) {
      throw new ExitError(EXIT_FAILED, `${this.#name} has read ${this.count} records of ${count}`)
    }
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#done
    if (this.#failure !== undefined) throw this.#failure
  }

  async #follow(client: Client): Promise<void> {
    const stream = client.read(orders, { from: 'start', signal: this.#stop.signal })
    for await (const batch of stream.batches()) {
      this.count += batch.count
      this.#wake?.()
    }
  }
}

async function sizeOfOrders(directory: string): Promise<number> {
  let bytes = 0
  for (let partition = 0; partition < PARTITIONS; partition++) {
    const folder = join(directory, `${orders.name}-${partition}`)
    for (const name of await readdir(folder)) bytes += (await stat(join(folder, name))).size
  }
  return bytes
}
