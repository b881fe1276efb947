import type { Clock } from '../../common/clock.ts'
import { BrokerError, toBrokerError } from '../../common/errors.ts'
import { isOffset } from '../../common/offset.ts'
import type { Random } from '../../common/random.ts'
import { MIB } from '../../common/units.ts'
import type { Topic } from '../../topic/topic.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer } from '../peer.ts'
import { TurnGate } from '../turn-gate.ts'
import type { QueueLogger } from './companion.ts'
import { checkDeadFilter, diedAtMs, fingerprintOf } from './dead-filter.ts'
import {
  FIRST_PLACE,
  type FoundLetter,
  type LetterPlace,
  LetterScan,
  SCAN_BYTES_PER_TURN,
  toDeadLetterInfo,
} from './dead-letter-scan.ts'
import type {
  DeadFilter,
  DeadLetterInfo,
  DeadLetterPlace,
  DeadLetters,
  RedrivePreview,
  RedriveTaskInfo,
} from './queue-types.ts'
import { LetterClaims } from './redrive-claims.ts'
import type { SettledMarks } from './redrive-marks.ts'
import { placeOf, RedriveMover } from './redrive-move.ts'
import {
  decodeRedrive,
  encodeRedrive,
  type RedrivePlan,
  type RedriveRecord,
  toTaskInfo,
} from './redrive-record.ts'
import { RedriveTask, type TaskStore } from './redrive-task.ts'

export interface DeadLetterBoxOptions {
  readonly topics: Topics
  readonly peer: Peer
  readonly marks: SettledMarks
  readonly tasks: TaskStore
  readonly clock: Clock
  readonly random: Random
  /** Silent by default. */
  readonly logger?: QueueLogger | undefined
  /** Where a group's dead letters from a topic go; there need not be such a topic. */
  readonly findDeadLetterTopic: (group: string, sourceTopic: string) => string
  /** Why nobody would ever work on what is given back to this group, or undefined; for people, beginning with a verb: `comes from group x, which is a stream group`. */
  readonly findObstacle?: ((group: string, sourceTopic: string) => string | undefined) | undefined
  /** Resolves when the group takes records from its retry topic. */
  readonly attachRetries?: ((group: string, sourceTopic: string) => Promise<void>) | undefined
}

type ListRequest = Parameters<DeadLetters['list']>[0]
type RedriveRequest = Parameters<DeadLetters['startRedrive']>[0]

const MOST_PER_PAGE = 1000
/** A page ends after so many bytes of letters, for gRPC clients take 4 MiB unless they are told otherwise, and errors are in it twice. One letter may be larger. */
const MOST_PAGE_BYTES: number = MIB
/** And after so many bytes of log, however little of it matched: some hundred milliseconds. */
const MOST_READ_BYTES: number = 16 * MIB
const FASTEST = 10_000
const MOST_SAMPLES = 10
const MOST_SAMPLE_BYTES: number = MIB
/** Tasks that are over are listed until so many newer ones are. */
const MOST_ENDED = 100

const SILENT: QueueLogger = { info: () => undefined, warn: () => undefined, error: () => undefined }

/**
 * Dead letters: looking at them, discarding them, giving them back (SEMANTICS §3.6, §3.7). A topic of dead letters is history that nobody changes; which of its
 * letters are done with is marked beside it.
 */
export class DeadLetterBox implements DeadLetters {
  readonly #topics: Topics
  readonly #marks: SettledMarks
  readonly #tasks: TaskStore
  readonly #clock: Clock
  readonly #random: Random
  readonly #logger: QueueLogger
  readonly #findDeadLetterTopic: DeadLetterBoxOptions['findDeadLetterTopic']
  readonly #claims = new LetterClaims()
  readonly #mover: RedriveMover
  readonly #gate: TurnGate
  readonly #running = new Map<string, RedriveTask>()
  readonly #ended = new Map<string, RedriveRecord>()
  /** Ids of tasks that are being counted, by the id of their topic. */
  readonly #starting = new Map<string, string>()
  readonly #background = new Set<Promise<void>>()
  #isClosed = false

  constructor(options: DeadLetterBoxOptions) {
    const { topics, peer, marks, clock } = options
    this.#topics = topics
    this.#marks = marks
    this.#tasks = options.tasks
    this.#clock = clock
    this.#random = options.random
    this.#logger = options.logger ?? SILENT
    this.#findDeadLetterTopic = options.findDeadLetterTopic
    this.#mover = new RedriveMover({
      topics,
      peer,
      marks,
      claims: this.#claims,
      findObstacle: options.findObstacle ?? (() => undefined),
      attachRetries: options.attachRetries ?? (() => Promise.resolve()),
    })
    this.#gate = new TurnGate(clock, SCAN_BYTES_PER_TURN)
  }

  /** Has tasks go on that were under way. To be called once, before anything else. A task that cannot be read is left alone, and reported. */
  open(): void {
    const unsettled = new Set<string>()
    for (const [taskId, text] of this.#tasks.all()) {
      try {
        const record = decodeRedrive(text)
        if (record.state === 'running') this.#start(record)
        else {
          this.#ended.set(taskId, record)
          for (const { letters } of record.pending) this.#mover.claim(record, letters)
          if (record.pending.length > 0) unsettled.add(record.topicId)
        }
      } catch (error) {
        const { code, message } = toBrokerError(error)
        this.#logger.error({ taskId, code, cause: message }, 'a redrive task cannot be read')
      }
    }
    for (const topicId of unsettled) this.#inBackground(this.#resolveEnded(topicId))
  }

  /** Stops all tasks where they are; they go on after the next {@link open}. */
  async close(): Promise<void> {
    this.#isClosed = true
    await Promise.all([...this.#running.values()].map((task) => task.close()))
    await Promise.all(this.#background)
  }

  #inBackground(work: Promise<void>): void {
    this.#background.add(work)
    void work.finally(() => this.#background.delete(work))
  }

  // ── Looking ──

  async list(request: ListRequest): ReturnType<DeadLetters['list']> {
    const { pageSize, pageToken, includeSettled } = request
    checkNumber('page_size', pageSize, 1, MOST_PER_PAGE)
    const { topic, filter } = this.#find(request.place, request.filter)
    const mark = { topicId: topic.id, print: fingerprintOf(filter), includeSettled }
    const from = pageToken === '' ? { place: FIRST_PLACE, given: 0 } : decodeToken(pageToken, mark)
    const left = filter.limit === 0 ? Infinity : filter.limit - from.given
    const ends = endsOf(topic)
    const scan = this.#scan({ topic: topic.name, topicId: topic.id, filter, ends }, from.place, {
      includeSettled,
    })
    const letters: DeadLetterInfo[] = []
    let bytes = 0
    const page = (place: LetterPlace): Awaited<ReturnType<DeadLetters['list']>> => {
      const given = from.given + letters.length
      const isOver = letters.length >= left || isBehind(place, ends)
      return {
        topic: topic.name,
        letters,
        nextPageToken: isOver ? '' : encodeToken(mark, { place, given }),
      }
    }
    while (scan.readBytes < MOST_READ_BYTES) {
      const found = await scan.next()
      if (found === undefined) break
      for (const letter of found) {
        letters.push(toDeadLetterInfo(letter, this.#isSettled(letter)))
        bytes += letter.bytes
        const isFull = letters.length >= Math.min(left, pageSize) || bytes >= MOST_PAGE_BYTES
        if (isFull) return page(behind(letter))
      }
    }
    return page(scan.place)
  }

  #isSettled({ partition, record }: FoundLetter): boolean {
    return this.#marks.isSettled(partition, record.offset)
  }

  /** @throws BrokerError INVALID_FILTER, UNKNOWN_TOPIC, NOT_A_DLQ, CLOSED */
  #find(place: DeadLetterPlace, filter: DeadFilter): { topic: Topic; filter: DeadFilter } {
    if (this.#isClosed) throw new BrokerError('CLOSED', 'the broker is stopping')
    checkDeadFilter(filter)
    const topic = this.#findTopic(place)
    if (!topic.config.dlq) {
      throw new BrokerError(
        'NOT_A_DLQ',
        `${topic.name} is no topic of dead letters: it does not have the setting dlq=true`,
        { topic: topic.name },
      )
    }
    if (place.topic !== '') return { topic, filter }
    const { group, sourceTopic } = place
    // Several groups may share a topic of dead letters: who names one of them means its letters.
    checkSame('group', filter.group, group)
    checkSame('topic', filter.topic, sourceTopic)
    return { topic, filter: { ...filter, group, topic: sourceTopic } }
  }

  #findTopic({ topic, group, sourceTopic }: DeadLetterPlace): Topic {
    if (topic !== '') return this.#topics.get(topic)
    const name = this.#findDeadLetterTopic(group, sourceTopic)
    const found = this.#topics.find(name)
    if (found !== undefined) return found
    throw new BrokerError(
      'UNKNOWN_TOPIC',
      `group ${group} has no dead letters from ${sourceTopic}: there is no topic ${name} yet`,
      { topic: name, group },
    )
  }

  #scan(
    plan: Pick<RedrivePlan, 'topic' | 'topicId' | 'filter' | 'ends'>,
    from: LetterPlace,
    options: { readonly includeSettled: boolean },
  ): LetterScan {
    return new LetterScan({
      topics: this.#topics,
      marks: this.#marks,
      gate: this.#gate,
      topic: plan.topic,
      topicId: plan.topicId,
      filter: plan.filter,
      ends: plan.ends,
      from,
      includeSettled: options.includeSettled,
      onSkipped: ({ code, message }) => {
        this.#logger.warn(
          { topic: plan.topic, code, cause: message },
          'dead letters that cannot be read were passed over',
        )
      },
    })
  }

  /** Calls `each` for the letters that a plan is about, as far as its limit goes. */
  async #visit(
    plan: Pick<RedrivePlan, 'topic' | 'topicId' | 'filter' | 'ends'>,
    each: (letters: readonly FoundLetter[]) => void | Promise<void>,
  ): Promise<void> {
    const { limit } = plan.filter
    const scan = this.#scan(plan, FIRST_PLACE, { includeSettled: false })
    for (let left = limit === 0 ? Infinity : limit; left > 0;) {
      const found = await scan.next()
      if (found === undefined) return
      if (this.#isClosed) throw new BrokerError('CLOSED', 'the broker is stopping')
      const letters = found
        .filter(
          ({ partition, record }) =>
            !this.#marks.isSettled(partition, record.offset) &&
            !this.#claims.has(partition, record.offset),
        )
        .slice(0, left)
      left -= letters.length
      await each(letters)
    }
  }

  // ── Discarding ──

  async discard(place: DeadLetterPlace, filter: DeadFilter, dryRun: boolean): Promise<number> {
    const found = this.#find(place, filter)
    const plan = toScanned(found.topic, found.filter)
    await this.#resolveEnded(plan.topicId)
    let count = 0
    await this.#visit(plan, async (letters) => {
      if (!dryRun) await this.#discard(plan, letters)
      count += letters.length
    })
    if (!dryRun && count > 0) {
      const { topic } = plan
      this.#logger.info({ event: 'dead_letters_discarded', topic, count }, 'dead letters discarded')
    }
    return count
  }

  async #discard(
    plan: Pick<RedrivePlan, 'topic' | 'topicId'>,
    letters: readonly FoundLetter[],
  ): Promise<void> {
    const places = letters.map(placeOf)
    this.#mover.claim(plan, places)
    try {
      await this.#mover.settle(plan, places)
    } finally {
      this.#mover.release(plan, places)
    }
  }

  // ── Redriving ──

  async startRedrive(request: RedriveRequest): ReturnType<DeadLetters['startRedrive']> {
    const { toTopic, maxPerSec, dryRun, resetAttempts } = request
    checkNumber('max_per_sec', maxPerSec, 1, FASTEST)
    const found = this.#find(request.place, request.filter)
    const toTopicId = toTopic === '' ? '' : this.#findTarget(toTopic)
    const scanned = toScanned(found.topic, found.filter)
    if (dryRun) return { task: undefined, preview: await this.#preview(scanned) }
    const { topic, topicId } = scanned
    this.#checkFree(topic, topicId)
    const taskId = this.#newTaskId()
    this.#starting.set(topicId, taskId)
    try {
      await this.#resolveEnded(topicId)
      let total = 0
      await this.#visit(scanned, (letters) => {
        total += letters.length
      })
      const record: RedriveRecord = {
        ...scanned,
        taskId,
        toTopic,
        toTopicId,
        maxPerSec,
        resetAttempts,
        startedMs: this.#clock.wallMs(),
        total,
        state: 'running',
        moved: 0,
        left: 0,
        leftWhy: '',
        at: FIRST_PLACE,
        pending: [],
        endedMs: 0,
        error: '',
      }
      await this.#tasks.put(taskId, encodeRedrive(record))
      this.#logger.info(
        { event: 'redrive_started', taskId, topic, toTopic, total, maxPerSec },
        'redrive started',
      )
      const task = this.#start(record)
      // It has been written down: the next start goes on with it.
      if (this.#isClosed) await task.close()
      return { task: task.info, preview: undefined }
    } finally {
      this.#starting.delete(topicId)
    }
  }

  /** @throws BrokerError UNKNOWN_TOPIC, TOPIC_INTERNAL, INVALID_REQUEST */
  #findTarget(name: string): string {
    this.#topics.checkWritable(name)
    const target = this.#topics.get(name)
    if (!target.config.dlq) return target.id
    throw new BrokerError(
      'INVALID_REQUEST',
      `${name} is a topic of dead letters itself: redrive to one that somebody works through`,
      { topic: name, field: 'to_topic' },
    )
  }

  /** @throws BrokerError REDRIVE_IN_PROGRESS */
  #checkFree(topic: string, topicId: string): void {
    const running = [...this.#running.values()].find(({ plan }) => plan.topicId === topicId)
    const taskId = this.#starting.get(topicId) ?? running?.plan.taskId
    if (taskId === undefined) return
    throw new BrokerError(
      'REDRIVE_IN_PROGRESS',
      `redrive ${taskId} is moving letters of ${topic}: it has to end, or be cancelled, before another one can begin`,
      { topic, taskId },
    )
  }

  /** Short, for people type it. */
  #newTaskId(): string {
    for (;;) {
      const taskId = `redrive-${this.#random.uint32().toString(16).padStart(8, '0')}`
      const isTaken = this.#running.has(taskId) || this.#ended.has(taskId)
      if (!isTaken && !this.#tasks.all().has(taskId)) return taskId
    }
  }

  #start(record: RedriveRecord): RedriveTask {
    const task = new RedriveTask({
      record,
      mover: this.#mover,
      marks: this.#marks,
      claims: this.#claims,
      topics: this.#topics,
      tasks: this.#tasks,
      clock: this.#clock,
      logger: this.#logger,
      scan: (plan, from) => this.#scan(plan, from, { includeSettled: false }),
      onEnded: (ended) => {
        this.#running.delete(ended.taskId)
        this.#ended.set(ended.taskId, ended)
        this.#inBackground(this.#forgetOldest())
      },
    })
    this.#running.set(record.taskId, task)
    task.start()
    return task
  }

  async #preview(
    plan: Pick<RedrivePlan, 'topic' | 'topicId' | 'filter' | 'ends'>,
  ): Promise<RedrivePreview> {
    const samples: DeadLetterInfo[] = []
    let [count, bytes, sampleBytes, firstMs, lastMs] = [0, 0, 0, Infinity, 0]
    await this.#visit(plan, (letters) => {
      for (const letter of letters) {
        const diedMs = diedAtMs(letter)
        count++
        bytes += letter.bytes
        firstMs = Math.min(firstMs, diedMs)
        lastMs = Math.max(lastMs, diedMs)
        if (samples.length === MOST_SAMPLES || sampleBytes + letter.bytes > MOST_SAMPLE_BYTES) {
          continue
        }
        sampleBytes += letter.bytes
        samples.push(toDeadLetterInfo(letter, false))
      }
    })
    return { count, bytes, firstMs: count === 0 ? 0 : firstMs, lastMs, samples }
  }

  // ── Tasks ──

  async getRedrive(taskId: string): Promise<RedriveTaskInfo> {
    return this.#getInfo(taskId)
  }

  /** Newest first. */
  async listRedrives(): Promise<readonly RedriveTaskInfo[]> {
    const running = [...this.#running.values()].map((task) => task.info)
    const ended = [...this.#ended.values()].map(toTaskInfo)
    return [...running, ...ended].sort((a, b) => b.startedMs - a.startedMs)
  }

  async cancelRedrive(taskId: string): Promise<RedriveTaskInfo> {
    await this.#running.get(taskId)?.cancel()
    return this.#getInfo(taskId)
  }

  #getInfo(taskId: string): RedriveTaskInfo {
    const running = this.#running.get(taskId)
    if (running !== undefined) return running.info
    const ended = this.#ended.get(taskId)
    if (ended !== undefined) return toTaskInfo(ended)
    const shown = taskId.slice(0, 60)
    throw new BrokerError('TASK_NOT_FOUND', `there is no redrive ${JSON.stringify(shown)}`, {
      taskId: shown,
    })
  }

  /** Looks for what tasks that are over had on their way when they could not find out. Never rejects: it is tried again before anything is moved or discarded. */
  async #resolveEnded(topicId: string): Promise<void> {
    for (const record of this.#ended.values()) {
      if (record.topicId !== topicId || record.pending.length === 0) continue
      try {
        const isGone = this.#topics.find(record.topic)?.id !== topicId
        const arrived = isGone ? [] : await this.#mover.resolve(record, record.pending)
        await this.#mover.settle(record, arrived)
        // Another call may have been here meanwhile.
        if (this.#ended.get(record.taskId) !== record) continue
        const resolved = { ...record, moved: record.moved + arrived.length, pending: [] }
        this.#ended.set(record.taskId, resolved)
        for (const { letters } of record.pending) this.#mover.release(record, letters)
        await this.#tasks.put(record.taskId, encodeRedrive(resolved))
      } catch (error) {
        const { taskId, topic } = record
        const { code, message } = toBrokerError(error)
        this.#logger.warn(
          { event: 'redrive_unresolved', taskId, topic, code, cause: message },
          'nobody knows for now what a redrive has moved last: these letters are left alone',
        )
      }
    }
  }

  /** Never rejects. */
  async #forgetOldest(): Promise<void> {
    while (this.#ended.size > MOST_ENDED) {
      const oldest = [...this.#ended.values()]
        .filter(({ pending }) => pending.length === 0)
        .reduce<RedriveRecord | undefined>(
          (old, one) => (old === undefined || one.endedMs < old.endedMs ? one : old),
          undefined,
        )
      if (oldest === undefined) return
      this.#ended.delete(oldest.taskId)
      try {
        await this.#tasks.put(oldest.taskId, null)
      } catch (error) {
        const { code, message } = toBrokerError(error)
        this.#logger.warn(
          { taskId: oldest.taskId, code, cause: message },
          'an old redrive task could not be forgotten',
        )
      }
    }
  }
}

function toScanned(
  topic: Topic,
  filter: DeadFilter,
): Pick<RedrivePlan, 'topic' | 'topicId' | 'filter' | 'ends'> {
  return { topic: topic.name, topicId: topic.id, filter, ends: endsOf(topic) }
}

/** What comes later is another day's business. */
function endsOf(topic: Topic): readonly number[] {
  return topic.partitions.map(({ highWatermark }) => highWatermark)
}

function behind(letter: FoundLetter): LetterPlace {
  const { partition, offset } = placeOf(letter)
  return { partition, offset: offset + 1 }
}

/** Nothing at all lies at or behind the place. */
function isBehind(place: LetterPlace, ends: readonly number[]): boolean {
  return ends.every(
    (end, partition) =>
      partition < place.partition || end <= (partition === place.partition ? place.offset : 0),
  )
}

function checkSame(field: string, asked: string, meant: string): void {
  if (asked === '' || asked === meant) return
  throw new BrokerError(
    'INVALID_FILTER',
    `${field} of the filter: ${asked.slice(0, 60)} is not ${meant}, whose dead letters were asked for`,
    { field },
  )
}

function checkNumber(field: string, value: number, least: number, most: number): void {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return
  throw new BrokerError('INVALID_REQUEST', `${field} ${value} is outside [${least}, ${most}]`, {
    field,
    actual: value,
    limit: most,
  })
}

// ── Page tokens: base64url of [version, topic id, fingerprint of the filter, settled ones too, partition, offset, letters given so far] ──

interface ListMark {
  readonly topicId: string
  readonly print: number
  readonly includeSettled: boolean
}

interface ListPosition {
  readonly place: LetterPlace
  readonly given: number
}

const TOKEN_VERSION = 1
const LONGEST_TOKEN = 400

function encodeToken(mark: ListMark, { place, given }: ListPosition): string {
  const { topicId, print, includeSettled } = mark
  const fields = [
    TOKEN_VERSION,
    topicId,
    print,
    includeSettled,
    place.partition,
    place.offset,
    given,
  ]
  return Buffer.from(JSON.stringify(fields)).toString('base64url')
}

/** @throws BrokerError INVALID_CURSOR */
function decodeToken(token: string, mark: ListMark): ListPosition {
  const [version, topicId, print, includeSettled, partition, offset, given] = parseToken(token)
  const isToken =
    version === TOKEN_VERSION && isOffset(partition) && isOffset(offset) && isOffset(given)
  if (!isToken) throw invalidCursor('is none that this broker has given out')
  if (topicId !== mark.topicId)
    throw invalidCursor('is of another topic, or of this one before it was made anew')
  if (print !== mark.print || includeSettled !== mark.includeSettled) {
    throw invalidCursor('is of a listing with another filter')
  }
  return { place: { partition, offset }, given }
}

function parseToken(token: string): readonly unknown[] {
  if (token.length > LONGEST_TOKEN) return []
  try {
    const parsed: unknown = JSON.parse(Buffer.from(token, 'base64url').toString('utf8'))
    return Array.isArray(parsed) ? (parsed as readonly unknown[]) : []
  } catch {
    return [] // Not JSON: the caller says that it is no token.
  }
}

function invalidCursor(why: string): BrokerError {
  return new BrokerError('INVALID_CURSOR', `the page token ${why}: list from the beginning`, {
    field: 'page_token',
  })
}
