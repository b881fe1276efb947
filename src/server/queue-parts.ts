import type { Clock } from '../common/clock.ts'
import type { BrokerError } from '../common/errors.ts'
import type { Random } from '../common/random.ts'
import { SendCoordinator } from '../coordination/delayed/send-coordinator.ts'
import type { GroupCoordinator } from '../coordination/group/group-coordinator.ts'
import { LocalPeer } from '../coordination/local-peer.ts'
import { DeadLetterBox } from '../coordination/queue/dead-letter-box.ts'
import { QueueCoordinator } from '../coordination/queue/queue-coordinator.ts'
import { CompanionMarks } from '../coordination/queue/redrive-marks.ts'
import type { QueueParts } from '../grpc/server.ts'
import type { Topics } from '../topic/topics.ts'
import type { Logger } from './logger.ts'

export interface QueuePartsOptions {
  readonly topics: Topics
  readonly groups: GroupCoordinator
  readonly clock: Clock
  readonly random: Random
  readonly logger: Logger
  /** See `QueueCoordinatorOptions.stateLingerMs`. */
  readonly stateLingerMs?: number | undefined
}

/** Everything behind QueueService: queue groups, delayed and deduplicated sends, dead letters. */
export class BrokerQueues implements QueueParts {
  readonly queues: QueueCoordinator
  readonly sends: SendCoordinator
  readonly deadLetters: DeadLetterBox

  private constructor(parts: {
    readonly queues: QueueCoordinator
    readonly sends: SendCoordinator
    readonly deadLetters: DeadLetterBox
  }) {
    this.queues = parts.queues
    this.sends = parts.sends
    this.deadLetters = parts.deadLetters
  }

  static async open(options: QueuePartsOptions): Promise<BrokerQueues> {
    const { topics, groups, clock, random, logger } = options
    const peer = new LocalPeer({ topics, clock })
    const queues = await QueueCoordinator.open({
      topics,
      groups,
      peer,
      clock,
      random,
      logger,
      stateLingerMs: options.stateLingerMs,
    })
    const sends = await SendCoordinator.open({ topics, peer, clock, random, logger })
    const deadLetters = new DeadLetterBox({
      topics,
      peer,
      marks: new CompanionMarks(queues.companions),
      tasks: {
        put: (taskId, text) => queues.putTask(taskId, text),
        all: () => queues.tasks,
      },
      clock,
      random,
      logger,
      findDeadLetterTopic: (group, topic) => queues.deadLetterTopicOf(group, topic),
      attachRetries: (group, topic) => queues.attachRetries(group, topic),
      findObstacle: (group) =>
        queues.has(group) ? undefined : `comes from group ${group}, which is no queue group here`,
    })
    deadLetters.open()
    groups.onDelete(async (group) => {
      if (queues.has(group)) await queues.delete(group)
    })
    return new BrokerQueues({ queues, sends, deadLetters })
  }

  /** Gives out nothing more; what workers have in hand they may still settle. */
  drain(): void {
    this.queues.drain()
  }

  /** Stops what goes on by itself, ends the sessions with `reason`, and waits for what is on its way. */
  async close(reason: BrokerError): Promise<void> {
    await Promise.all([this.deadLetters.close(), this.sends.close()])
    await this.queues.close(reason)
  }
}
