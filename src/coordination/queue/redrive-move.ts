import { BrokerError, type ErrorCode, toBrokerError } from '../../common/errors.ts'
import { checkGroupId, checkTopicName, isInternalTopic } from '../../common/names.ts'
import { MIB } from '../../common/units.ts'
import type { Topics } from '../../topic/topics.ts'
import type { Peer, PeerMark, PeerRecord } from '../peer.ts'
import { BatchShelf } from './batch-shelf.ts'
import {
  type DeadLetterFacts,
  REDRIVE_ID_HEADER,
  toRedrivenHeaders,
  withoutDeadLetterHeaders,
} from './dead-letter-record.ts'
import type { FoundLetter, LetterPlace } from './dead-letter-scan.ts'
import { retryTopicName } from './names.ts'
import type { LogRecord } from './queue-types.ts'
import type { LetterClaims } from './redrive-claims.ts'
import { type SettledMarks, toRanges } from './redrive-marks.ts'
import type { PendingMove, RedrivePlan } from './redrive-record.ts'

export interface RedriveMoverOptions {
  readonly topics: Topics
  readonly peer: Peer
  readonly marks: SettledMarks
  readonly claims: LetterClaims
  /** Why no group would ever get a letter of this group and topic, or undefined. */
  readonly findObstacle: (group: string, sourceTopic: string) => string | undefined
  /** Resolves when the group takes records from its retry topic, so that whoever looks after a redrive sees them. */
  readonly attachRetries: (group: string, sourceTopic: string) => Promise<void>
}

/** Copies of letters that go to one partition together. */
export interface Move extends PendingMove {
  /** One for each letter. */
  readonly records: readonly PeerRecord[]
}

/** A letter that cannot be moved: it stays where it is. */
export interface Refusal {
  readonly letter: LetterPlace
  readonly why: string
}

/** Why a letter cannot be moved: `has …`, `is …`. */
interface Obstacle {
  readonly why: string
}

interface Whole extends Pick<LogRecord, 'key' | 'value' | 'headers'> {
  readonly why: undefined
}

interface Copy {
  readonly mark: PeerMark
  readonly record: PeerRecord
  readonly why: undefined
}

export interface MoveOutcome {
  readonly moved: readonly LetterPlace[]
  readonly refused: readonly Refusal[]
}

/** Of topics that hold what goes to one group once more. As large as records can be: a copy has more headers than the letter; and it waits for the group, as a topic of jobs does. */
const RETRY_CONFIG: Readonly<Record<string, string>> = {
  'retention.ms': '30d',
  'retention.respect.queue.groups': 'true',
  'max.message.bytes': String(8 * MIB),
}

/** Say that a record is wrong, not that the topic does not work. */
const RECORD_FAULTS: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'RECORD_TOO_LARGE',
  'BATCH_TOO_LARGE',
  'INVALID_RECORD',
  'INVALID_TIMESTAMP',
])

/**
 * Brings copies of dead letters to where they are tried again, each as exactly one (SEMANTICS §3.7). Who calls has claimed the letters, and writes down what
 * {@link prepare} says before {@link append}; after an error, or a crash, {@link resolve} tells what has arrived all the same.
 */
export class RedriveMover {
  readonly #topics: Topics
  readonly #peer: Peer
  readonly #marks: SettledMarks
  readonly #claims: LetterClaims
  readonly #findObstacle: RedriveMoverOptions['findObstacle']
  readonly #attachRetries: RedriveMoverOptions['attachRetries']

  constructor(options: RedriveMoverOptions) {
    this.#topics = options.topics
    this.#peer = options.peer
    this.#marks = options.marks
    this.#claims = options.claims
    this.#findObstacle = options.findObstacle
    this.#attachRetries = options.attachRetries
  }

  /** @throws BrokerError (as rejection) why the target does not work; then nothing has happened */
  async prepare(
    plan: RedrivePlan,
    letters: readonly FoundLetter[],
  ): Promise<{ readonly moves: readonly Move[]; readonly refused: readonly Refusal[] }> {
    const moves = new Map<
      string,
      { mark: PeerMark; letters: LetterPlace[]; records: PeerRecord[] }
    >()
    const refused: Refusal[] = []
    for (const letter of letters) {
      const place = placeOf(letter)
      const copy = await this.#copy(plan, letter)
      if (copy.why !== undefined) {
        refused.push({ letter: place, why: `${place.partition}/${place.offset} ${copy.why}` })
        continue
      }
      const key = `${copy.mark.topic}/${copy.mark.partition}`
      const move = moves.get(key) ?? { mark: copy.mark, letters: [], records: [] }
      moves.set(key, move)
      move.letters.push(place)
      move.records.push(copy.record)
    }
    return { moves: [...moves.values()], refused }
  }

  async #copy(plan: RedrivePlan, letter: FoundLetter): Promise<Copy | Obstacle> {
    const whole = await this.#findWhole(letter)
    if (whole.why !== undefined) return whole
    const mark = await this.#findTarget(plan, letter, whole.key)
    if (typeof mark === 'string') return { why: mark }
    // In another topic it is a record like any other, and begins anew.
    const resetAttempts = plan.resetAttempts || plan.toTopic !== ''
    const headers = toRedrivenHeaders(
      whole.headers,
      redriveId(plan.topicId, placeOf(letter)),
      resetAttempts,
    )
    // Stamped when it is appended: retention counts from then.
    const record = { key: whole.key, value: whole.value, headers, timestampMs: undefined }
    return { mark, record, why: undefined }
  }

  async #findTarget(
    plan: RedrivePlan,
    letter: FoundLetter,
    key: Uint8Array | undefined,
  ): Promise<PeerMark | string> {
    if (plan.toTopic !== '') return this.#markTopic(plan, letter, key)
    const { facts } = letter
    if (facts === undefined) return 'is no dead letter: it does not say which group gave it up'
    const { group, topic } = facts
    const why = this.#findObstacleTo(group, topic)
    if (why !== undefined) return why
    const retry = await this.#topics.ensureInternal(retryTopicName(group, topic), 1, RETRY_CONFIG)
    await this.#attachRetries(group, topic)
    return this.#peer.mark(retry.name, { partition: 0 })
  }

  #findObstacleTo(group: string, topic: string): string | undefined {
    try {
      checkGroupId(group)
      checkTopicName(topic)
    } catch (error) {
      return `names no group or no topic: ${toBrokerError(error).message}`
    }
    if (this.#topics.find(topic) === undefined || isInternalTopic(topic)) {
      return `comes from topic ${topic}, which is not there any more`
    }
    return this.#findObstacle(group, topic)
  }

  #markTopic(plan: RedrivePlan, letter: FoundLetter, key: Uint8Array | undefined): PeerMark {
    const topic = this.#topics.get(plan.toTopic)
    if (topic.id !== plan.toTopicId) {
      throw new BrokerError('UNKNOWN_TOPIC_ID', `topic ${plan.toTopic} has been made anew`, {
        topic: plan.toTopic,
        topicId: topic.id,
      })
    }
    // Those without a key go to all partitions in turn, the same one each time.
    const partition = letter.record.offset % topic.partitions.length
    return this.#peer.mark(plan.toTopic, key === undefined ? { partition } : { key })
  }

  /** What is to be copied: the letter, or, where its payload was left out, what it was made of. */
  async #findWhole(letter: FoundLetter): Promise<Whole | Obstacle> {
    const { facts, record } = letter
    if (facts === undefined || facts.hasPayload || record.value !== undefined) {
      return { key: record.key, value: record.value, headers: record.headers, why: undefined }
    }
    const original = await this.#findOriginal(facts, record)
    if (original === undefined) {
      return {
        why: `has no payload, and the original at ${facts.topic}-${facts.partition} offset ${facts.offset} is gone`,
      }
    }
    const told = record.headers.filter(
      ({ key }) => key.startsWith('dlq.') && key !== 'dlq.payload' && key !== 'dlq.truncated',
    )
    const own = withoutDeadLetterHeaders(original.headers)
    return { key: original.key, value: original.value, headers: [...own, ...told], why: undefined }
  }

  async #findOriginal(facts: DeadLetterFacts, letter: LogRecord): Promise<LogRecord | undefined> {
    const topic = this.#topics.find(facts.topic)
    const partition = topic?.partitions[facts.partition]
    // Headers may say anything; what the broker keeps for itself is nobody's payload. A topic made anew since then has other records at these offsets.
    if (topic === undefined || topic.internal || partition === undefined) return undefined
    if (topic.createdMs > facts.firstFailedMs) return undefined
    if (facts.offset < partition.logStartOffset || facts.offset >= partition.highWatermark) {
      return undefined
    }
    let record: LogRecord | undefined
    try {
      record = await new BatchShelf(partition).readRecord(facts.offset)
    } catch (error) {
      const { code, retryable } = toBrokerError(error)
      if (retryable || code === 'CLOSED') throw error
      return undefined // Damaged, or gone meanwhile.
    }
    if (record?.value === undefined) return undefined
    const isSame = letter.key === undefined || isSameKey(letter.key, record.key)
    return isSame ? record : undefined
  }

  /**
   * Appends what has been written down.
   * @throws BrokerError (as rejection) why the target does not work: some of the copies may be there all the same
   */
  async append(move: Move): Promise<MoveOutcome> {
    try {
      await this.#peer.append(move.mark, move.records)
      return { moved: move.letters, refused: [] }
    } catch (error) {
      if (!RECORD_FAULTS.has(toBrokerError(error).code)) throw error
    }
    return await this.#appendOneByOne(move)
  }

  /** One of them cannot be taken, and should not be in the way of the rest. */
  async #appendOneByOne(move: Move): Promise<MoveOutcome> {
    const { mark, letters, records } = move
    const ids = records.map(({ headers }) => idOf(headers))
    const there = await this.#peer.findIds(mark, REDRIVE_ID_HEADER, new Set(ids))
    const moved: LetterPlace[] = []
    const refused: Refusal[] = []
    for (const [index, letter] of letters.entries()) {
      const record = records[index]
      if (record === undefined) continue
      try {
        if (!there.has(ids[index] ?? '')) await this.#peer.append(mark, [record])
        moved.push(letter)
      } catch (error) {
        const { code, message } = toBrokerError(error)
        if (!RECORD_FAULTS.has(code)) throw error
        const why = `${letter.partition}/${letter.offset} is not taken by ${mark.topic}: ${message}`
        refused.push({ letter, why })
      }
    }
    return { moved, refused }
  }

  /**
   * Which of the letters have arrived. Looks at the targets.
   * @throws BrokerError (as rejection) when a target cannot be read: nobody knows then
   */
  async resolve(
    plan: Pick<RedrivePlan, 'topic' | 'topicId'>,
    pending: readonly PendingMove[],
  ): Promise<readonly LetterPlace[]> {
    const arrived: LetterPlace[] = []
    for (const { mark, letters } of pending) {
      const byId = new Map(letters.map((letter) => [redriveId(plan.topicId, letter), letter]))
      const found = await this.#peer.findIds(mark, REDRIVE_ID_HEADER, new Set(byId.keys()))
      for (const [id, letter] of byId) {
        if (found.has(id) || (await this.#isSettled(plan, letter))) arrived.push(letter)
      }
    }
    return arrived
  }

  /** Claimed as it is, nobody but whoever moved it can have settled it: also where the copy has gone on since. */
  async #isSettled(
    plan: Pick<RedrivePlan, 'topic' | 'topicId'>,
    letter: LetterPlace,
  ): Promise<boolean> {
    const partition = this.#topics.getPartition(plan.topic, letter.partition, plan.topicId)
    await this.#marks.open(partition)
    return this.#marks.isSettled(partition, letter.offset)
  }

  /** Durable when it resolves. @throws BrokerError (as rejection) when it cannot be written */
  async settle(
    plan: Pick<RedrivePlan, 'topic' | 'topicId'>,
    letters: readonly LetterPlace[],
  ): Promise<void> {
    const offsets = new Map<number, number[]>()
    for (const { partition, offset } of letters) {
      const list = offsets.get(partition)
      if (list === undefined) offsets.set(partition, [offset])
      else list.push(offset)
    }
    for (const [index, list] of offsets) {
      const partition = this.#topics.getPartition(plan.topic, index, plan.topicId)
      await this.#marks.settle(partition, toRanges(list.sort((a, b) => a - b)))
    }
  }

  claim(plan: Pick<RedrivePlan, 'topicId'>, letters: readonly LetterPlace[]): void {
    for (const { partition, offset } of letters) this.#claims.claim(plan.topicId, partition, offset)
  }

  release(plan: Pick<RedrivePlan, 'topicId'>, letters: readonly LetterPlace[]): void {
    for (const { partition, offset } of letters) {
      this.#claims.release(plan.topicId, partition, offset)
    }
  }
}

export function placeOf(letter: FoundLetter): LetterPlace {
  return { partition: letter.partition.index, offset: letter.record.offset }
}

/** Names a letter for good, wherever its copy is: a topic made anew has another id. */
function redriveId(topicId: string, { partition, offset }: LetterPlace): string {
  return `${topicId}/${partition}/${offset}`
}

function idOf(headers: PeerRecord['headers']): string {
  const value = headers.findLast(({ key }) => key === REDRIVE_ID_HEADER)?.value
  return value === undefined ? '' : Buffer.from(value).toString('utf8')
}

function isSameKey(a: Uint8Array, b: Uint8Array | undefined): boolean {
  return b !== undefined && Buffer.compare(a, b) === 0
}
