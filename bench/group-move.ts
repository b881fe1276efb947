import { setTimeout as delay } from 'node:timers/promises'
import {
  type Acks,
  bytes,
  type Client,
  connect,
  type Consumer,
  topic,
  type TopicPartition,
} from '../src/client/index.ts'
import { Arrivals, medianOf } from './arrivals.ts'
import type { BenchEnvironment } from './environment.ts'
import { UsageWatch } from './measurement.ts'
import { GroupVerifier } from './group-verifier.ts'
import type { RunFigures } from './report.ts'
import { monotonicMs, Values } from './values.ts'
import { VerificationError } from './verifier.ts'

export interface MoveOptions {
  /** That are there before the last one comes. */
  readonly consumers: number
  readonly partitions: number
  /** From one record of a partition to its next. */
  readonly tickMs: number
  /** Watched before the last one comes, and again from then on. */
  readonly windowMs: number
  readonly acks: Exclude<Acks, 'none'>
  readonly payload: number
  readonly seed: number
}

const TOPIC = 'bench'
const GROUP = 'bench'
/** Until everything is compiled. */
const WARM_UP_MS = 2_000
const POLL_MS = 20
const PATIENCE_MS = 60_000

/** One more consumer comes while all partitions are written and read: how many move, and whether the others notice. */
export async function measureMove(
  environment: BenchEnvironment,
  options: MoveOptions,
): Promise<{ readonly figures: RunFigures; readonly records: number }> {
  const { consumers, partitions, windowMs } = options
  const broker = await environment.startBroker()
  const producer = environment.startLoadProcess()
  const clients: Client[] = []
  try {
    const admin = await connect({ url: broker.address, clientId: 'bench' })
    clients.push(admin)
    // What is to be seen is the group, not the disk: readers may see what is written.
    const visibility = options.acks === 'written' ? { visibility: 'written' } : {}
    await admin.admin.createTopic(TOPIC, { partitions, config: visibility })
    const watch = new MoveWatch(options)
    for (let i = 0; i <= consumers; i++) {
      clients.push(await connect({ url: broker.address, clientId: `bench-consume-${i}` }))
    }
    const [, ...own] = clients
    for (const client of own.slice(0, consumers)) watch.add(client)
    await watch.until(() => watch.isSettled(), 'the group to settle')
    await producer.beginSteady({
      address: broker.address,
      topic: TOPIC,
      partitions,
      values: watch.valueOptions,
      acks: options.acks,
      intervalMs: options.tickMs,
    })
    await watch.until(() => watch.verifier.hasAll(1), 'the first records')
    await delay(WARM_UP_MS)
    const usage = new UsageWatch(broker.process, [process.pid], monotonicMs())
    await delay(windowMs)
    const ownersBefore = watch.owners()
    watch.disturbed.clear()
    const joinMs = monotonicMs()
    const last = own[consumers]
    if (last === undefined) throw new Error('there is no client for the last consumer')
    watch.add(last)
    await delay(windowMs)
    usage.end()
    await watch.until(() => watch.isSettled(), 'the group to settle again')
    const ownersAfter = watch.owners()
    const disturbed = new Set(watch.disturbed)
    const written = await producer.endSteady()
    await watch.until(() => watch.verifier.hasAll(written), 'the last records')
    await watch.close()
    watch.verifier.finish(written)
    const { brokerCpuSeconds, clientCpuSeconds, brokerLoopP99Ms } = await usage.figures()
    const moved = ownersAfter.flatMap((owner, partition) =>
      owner === ownersBefore[partition] ? [] : [partition],
    )
    const pauses = (only: (partition: number) => boolean, fromMs: number): number[] =>
      Array.from({ length: partitions }, (_, partition) => partition)
        .filter(only)
        .map((partition) => watch.arrivals.longestPauseMs(partition, fromMs, fromMs + windowMs))
    const isMoved = (partition: number): boolean => moved.includes(partition)
    const before = pauses(() => true, joinMs - windowMs)
    const others = pauses((partition) => !isMoved(partition), joinMs)
    const movers = pauses(isMoved, joinMs)
    return {
      records: watch.verifier.records,
      figures: {
        moved: moved.length,
        disturbedOthers: [...disturbed].filter((partition) => !isMoved(partition)).length,
        takenOverMs: watch.firstAssignedMs(consumers) - joinMs,
        pauseBeforeMedianMs: medianOf(before),
        pauseBeforeLongestMs: Math.max(...before),
        pauseOthersMedianMs: medianOf(others),
        pauseOthersLongestMs: Math.max(...others),
        pauseMovedMedianMs: medianOf(movers),
        pauseMovedLongestMs: Math.max(...movers),
        recordsReadTwice: watch.verifier.repeated,
        // A processor that is busy all the time makes pauses of its own.
        moveBrokerCpuPercent: toPercent(brokerCpuSeconds, windowMs * 2),
        moveConsumersCpuPercent: toPercent(clientCpuSeconds, windowMs * 2),
        moveBrokerLoopP99Ms: brokerLoopP99Ms,
      },
    }
  } finally {
    producer.end()
    for (const client of clients) await client.close()
    await broker.stop()
    environment.remove(broker.process.directory)
  }
}

function toPercent(cpuSeconds: number | undefined, ms: number): number | undefined {
  return cpuSeconds === undefined ? undefined : (cpuSeconds / ms) * 100_000
}

/** The consumers of this process and what they have got. */
class MoveWatch {
  readonly valueOptions: ConstructorParameters<typeof Values>[0]
  readonly verifier: GroupVerifier
  readonly arrivals: Arrivals
  /** Partitions that were revoked, lost or assigned. */
  readonly disturbed: Set<number> = new Set()
  readonly #partitions: number
  readonly #consumers: Consumer<Uint8Array>[] = []
  readonly #firstAssignedMs: (number | undefined)[] = []
  readonly #reading: Promise<void>[] = []
  #failure: unknown

  constructor(options: MoveOptions) {
    const { seed, payload, partitions } = options
    this.#partitions = partitions
    this.valueOptions = { seed, payloadBytes: payload, isStamped: true, content: 'random' }
    this.verifier = new GroupVerifier(new Values(this.valueOptions), partitions)
    this.arrivals = new Arrivals(partitions)
  }

  add(client: Client): void {
    const index = this.#consumers.length
    const consumer = client.consumer(topic(TOPIC, { value: bytes }), { group: GROUP })
    this.#consumers.push(consumer)
    this.#firstAssignedMs.push(undefined)
    const note = (partitions: readonly TopicPartition[]): void => {
      for (const { partition } of partitions) {
        this.disturbed.add(partition)
        this.verifier.moved(partition)
      }
    }
    consumer.on('assigned', (partitions) => {
      if (partitions.length > 0) this.#firstAssignedMs[index] ??= monotonicMs()
      note(partitions)
    })
    consumer.on('revoked', note)
    consumer.on('lost', note)
    consumer.on('error', (error) => {
      this.#failure ??= error
    })
    const reading = this.#read(consumer).catch((error: unknown) => {
      this.#failure ??= error
    })
    this.#reading.push(reading)
  }

  /** NaN when it has got none. */
  firstAssignedMs(consumer: number): number {
    return this.#firstAssignedMs[consumer] ?? NaN
  }

  /** Which consumer has it, by partition. */
  owners(): (number | undefined)[] {
    const owners: (number | undefined)[] = Array.from({ length: this.#partitions })
    for (const [index, consumer] of this.#consumers.entries()) {
      for (const { partition } of consumer.assignment()) owners[partition] = index
    }
    return owners
  }

  /** Every partition has an owner, and no consumer has more than its share. */
  isSettled(): boolean {
    const counts = this.#consumers.map((consumer) => consumer.assignment().length)
    const total = counts.reduce((sum, count) => sum + count, 0)
    return total === this.#partitions && Math.max(...counts) - Math.min(...counts) <= 1
  }

  async until(isTrue: () => boolean, what: string): Promise<void> {
    const untilMs = monotonicMs() + PATIENCE_MS
    while (!isTrue()) {
      if (this.#failure !== undefined) throw this.#failure
      if (monotonicMs() > untilMs) {
        throw new VerificationError(`waited ${PATIENCE_MS} ms in vain for ${what}`)
      }
      await delay(POLL_MS)
    }
    if (this.#failure !== undefined) throw this.#failure
  }

  async close(): Promise<void> {
    for (const consumer of this.#consumers) await consumer.close()
    await Promise.all(this.#reading)
    if (this.#failure !== undefined) throw this.#failure
  }

  async #read(consumer: Consumer<Uint8Array>): Promise<void> {
    for await (const batch of consumer.batches()) {
      this.arrivals.note(batch.partition, monotonicMs())
      this.verifier.take(batch)
    }
  }
}
