import { MillraceError } from '../../src/client/index.ts'
import type {
  DeadLetterFilter,
  DeadLetterInfo,
  DeadLetterPlace,
  DelayedInfo,
  GroupInfo,
  QueueInfo,
  QueuePartitionInfo,
  RawRecord,
  RecordExplanation,
  RedriveInfo,
  RedriveOptions,
  RedriveResult,
} from '../../src/client/index.ts'
import type { QueueCommands } from '../../src/cli/queue-hints.ts'

export function aRecord(shape: Partial<RawRecord> = {}): RawRecord {
  return {
    offset: 0,
    timestamp: 1_767_225_600_000,
    key: undefined,
    value: Buffer.from('{"to":"a@example.org"}'),
    headers: {},
    ...shape,
  }
}

export function aPartition(shape: Partial<QueuePartitionInfo> = {}): QueuePartitionInfo {
  return {
    topic: 'emails',
    partition: 0,
    logStartOffset: 0,
    startOffset: 10,
    scanOffset: 40,
    highWatermark: 1_240,
    ready: 1_200,
    acquired: 7,
    parked: 3,
    deadLettering: 0,
    blocked: 0,
    done: 20,
    runs: 4,
    oldestReadyMs: 65_000,
    error: undefined,
    ...shape,
  }
}

export function anExplanation(shape: Partial<RecordExplanation> = {}): RecordExplanation {
  return {
    state: 'available',
    reason: 'it waits for a worker',
    deliveryCount: 1,
    failureCount: 1,
    dueAt: undefined,
    memberId: undefined,
    leaseExpiresAt: undefined,
    blockedByOffset: undefined,
    failures: [],
    startOffset: 10,
    scanOffset: 40,
    highWatermark: 1_240,
    ...shape,
  }
}

export function aLetter(shape: Partial<DeadLetterInfo> = {}): DeadLetterInfo {
  return {
    topic: 'dlq.mailer.emails',
    partition: 0,
    record: aRecord({ offset: 3, headers: { 'dlq.group': 'mailer', trace: 'x1' } }),
    group: 'mailer',
    sourceTopic: 'emails',
    sourcePartition: 0,
    sourceOffset: 17,
    reason: 'attempts_exhausted',
    deliveries: 5,
    failures: 5,
    firstFailedAt: 1_767_225_600_000,
    lastFailedAt: 1_767_225_660_000,
    error: { type: 'TypeError', message: 'no such address', stack: 'TypeError: no\n    at send' },
    memberId: 'w-1',
    redrives: 0,
    settled: false,
    ...shape,
  }
}

export function aTask(shape: Partial<RedriveInfo> = {}): RedriveInfo {
  return {
    taskId: 'r-1',
    topic: 'dlq.mailer.emails',
    to: '',
    state: 'running',
    moved: 0,
    total: 2,
    startedAt: 1_767_225_600_000,
    endedAt: undefined,
    maxPerSec: 100,
    error: undefined,
    ...shape,
  }
}

export function aDelayed(shape: Partial<DelayedInfo> = {}): DelayedInfo {
  return {
    delayId: '0.7.ab',
    topic: 'emails',
    partition: 0,
    deliverAt: 4_102_444_800_000,
    acceptedAt: 1_767_225_600_000,
    dedupeId: undefined,
    record: aRecord(),
    ...shape,
  }
}

/** The group `mailer` over `emails`, in memory: enough for what the command line asks. Calls that change something are kept. */
export class FakeQueueAdmin implements QueueCommands {
  readonly calls: (readonly unknown[])[] = []
  info: QueueInfo
  letters: readonly DeadLetterInfo[] = [aLetter(), aLetter({ reason: 'rejected' })]
  delayedRecords: readonly DelayedInfo[] = [aDelayed()]
  explanation: RecordExplanation = anExplanation()
  /** What a redrive is at each look at it; the last one stays. */
  taskSteps: readonly RedriveInfo[] = [aTask({ state: 'done', moved: 2 })]
  #step = 0

  constructor(shape: Partial<QueueInfo> = {}) {
    this.info = {
      group: 'mailer',
      topics: [
        { topic: 'emails', deadLetterTopic: 'dlq.mailer.emails', partitions: [aPartition()] },
      ],
      members: [],
      config: [
        {
          name: 'retry.max.attempts',
          value: '5',
          overridden: false,
          description: 'runs in all',
          allowed: '0 to 1000',
        },
        {
          name: 'order',
          value: 'key',
          overridden: true,
          description: 'what is done one after the other',
          allowed: 'none, key, partition',
        },
      ],
      paused: false,
      pausedUntil: undefined,
      throttledUntil: undefined,
      windowFull: false,
      dlqUnavailable: false,
      counters: { delivered: 1_500, accepted: 1_490, deadLettered: 2, dropped: 0 },
      ...shape,
    }
  }

  #check(group: string): Promise<void> {
    if (group === 'mailer') return Promise.resolve()
    const code = group === 'billing' ? 'GROUP_TYPE_MISMATCH' : 'UNKNOWN_GROUP'
    return Promise.reject(new MillraceError(code, `no queue group ${group}`, { group }))
  }

  // oxlint-disable-next-line require-await -- the interface is asynchronous
  async *groups(): AsyncGenerator<GroupInfo> {
    yield { group: 'mailer', type: 'queue', state: 'stable', members: 0, epoch: 0 }
  }

  async describeQueue(group: string): Promise<QueueInfo> {
    await this.#check(group)
    return this.info
  }

  async configureQueue(
    group: string,
    change: Parameters<QueueCommands['configureQueue']>[1],
  ): Promise<QueueInfo['config']> {
    await this.#check(group)
    this.calls.push(['configure', group, change])
    return this.info.config
  }

  async pauseQueue(group: string, options: { until?: Date | undefined } = {}): Promise<void> {
    await this.#check(group)
    this.calls.push(['pause', group, options.until])
  }

  async resumeQueue(group: string): Promise<void> {
    await this.#check(group)
    this.calls.push(['resume', group])
  }

  async peekQueue(
    group: string,
    topic: string,
    options: Parameters<QueueCommands['peekQueue']>[2] = {},
  ): ReturnType<QueueCommands['peekQueue']> {
    await this.#check(group)
    this.calls.push(['peek', group, topic, options])
    return [
      { topic, partition: 0, record: aRecord({ offset: 17 }), state: this.explanation },
      {
        topic,
        partition: 1,
        record: aRecord({ offset: 4, key: Buffer.from('k'), value: null }),
        state: anExplanation({ state: 'parked', dueAt: Date.now() + 90_000 }),
      },
    ]
  }

  async explainRecord(group: string, ...place: unknown[]): Promise<RecordExplanation> {
    await this.#check(group)
    this.calls.push(['explain', group, ...place])
    return this.explanation
  }

  async unblockRecord(group: string, ...rest: unknown[]): Promise<void> {
    await this.#check(group)
    this.calls.push(['unblock', group, ...rest])
  }

  async #checkPlace(place: DeadLetterPlace): Promise<void> {
    if (typeof place !== 'string') return this.#check(place.group)
    if (place === 'dlq.mailer.emails') return
    const code = place === 'emails' ? 'NOT_A_DLQ' : 'UNKNOWN_TOPIC'
    throw new MillraceError(code, `${place} has no dead letters`, { topic: place })
  }

  async *deadLetters(
    place: DeadLetterPlace,
    options: DeadLetterFilter & { includeSettled?: boolean | undefined } = {},
  ): AsyncGenerator<DeadLetterInfo> {
    await this.#checkPlace(place)
    this.calls.push(['dead', place, options])
    const { firstOffset = 0, endOffset = Infinity, limit = Infinity, reason } = options
    let count = 0
    for (const letter of this.letters) {
      const { offset } = letter.record
      if (offset < firstOffset || offset >= endOffset) continue
      if (reason !== undefined && letter.reason !== reason) continue
      if (letter.settled && options.includeSettled !== true) continue
      if (count++ >= limit) return
      yield letter
    }
  }

  async discardDeadLetters(
    place: DeadLetterPlace,
    options: DeadLetterFilter & { dryRun?: boolean | undefined } = {},
  ): Promise<{ discarded: number }> {
    await this.#checkPlace(place)
    if (options.dryRun !== true) this.calls.push(['discard', place, options])
    return { discarded: this.letters.length }
  }

  async redrive(place: DeadLetterPlace, options: RedriveOptions = {}): Promise<RedriveResult> {
    await this.#checkPlace(place)
    if (options.dryRun === true) {
      return {
        moved: 0,
        task: undefined,
        preview: {
          count: this.letters.length,
          bytes: 2_048,
          firstAt: 1_767_225_600_000,
          lastAt: 1_767_225_660_000,
          samples: this.letters,
        },
      }
    }
    this.calls.push(['redrive', place, options])
    return { moved: 0, task: aTask(), preview: undefined }
  }

  redrives(): Promise<readonly RedriveInfo[]> {
    const step = this.taskSteps[Math.min(this.#step++, this.taskSteps.length - 1)]
    return Promise.resolve(step === undefined ? [] : [step])
  }

  cancelRedrive(taskId: string): Promise<RedriveInfo> {
    if (taskId !== 'r-1') {
      return Promise.reject(new MillraceError('TASK_NOT_FOUND', `no redrive ${taskId}`))
    }
    this.calls.push(['cancel-redrive', taskId])
    return Promise.resolve(aTask({ state: 'cancelled', moved: 1, endedAt: 1_767_225_601_000 }))
  }

  // oxlint-disable-next-line require-await -- the interface is asynchronous
  async *delayed(
    options: Parameters<QueueCommands['delayed']>[0] = {},
  ): AsyncGenerator<DelayedInfo> {
    this.calls.push(['delayed', options])
    yield* this.delayedRecords
  }

  countDelayed(topic?: string): Promise<number> {
    this.calls.push(['count', topic])
    return Promise.resolve(1_234)
  }

  async cancelDelayed(delayId: string): Promise<void> {
    this.#checkDelay(delayId)
    this.calls.push(['cancel', delayId])
    return Promise.resolve()
  }

  async updateDelayed(delayId: string, deliverAt: Date): Promise<void> {
    this.#checkDelay(delayId)
    this.calls.push(['move', delayId, deliverAt])
    return Promise.resolve()
  }

  async fireDelayed(delayId: string): Promise<{ partition: number; offset: number }> {
    this.#checkDelay(delayId)
    this.calls.push(['fire', delayId])
    return Promise.resolve({ partition: 2, offset: 99 })
  }

  #checkDelay(delayId: string): void {
    if (delayId !== '0.7.ab') {
      throw new MillraceError('DELAY_NOT_FOUND', `nothing waits as ${delayId}`)
    }
  }
}
