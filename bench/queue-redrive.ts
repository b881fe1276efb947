import { connect } from '../src/client/index.ts'
import type { BenchEnvironment } from './environment.ts'
import { produceLoad } from './produce-load.ts'
import {
  createJobTopic,
  producing,
  QUEUE_GROUP,
  QUEUE_TOPIC,
  reached,
  working,
} from './queue-cycles.ts'
import type { PartResult, QueueBenchOptions } from './queue.ts'
import { monotonicMs } from './values.ts'
import { VerificationError } from './verifier.ts'

const DEFAULT_RECORDS = 10_000
const OTHER_GROUP = 'bench-others'

/** One group rejects everything, another one handles it; what was rejected is given to the first again, and the other must see nothing of it. */
export async function measureRedrive(
  environment: BenchEnvironment,
  options: QueueBenchOptions,
): Promise<PartResult> {
  const records = options.records ?? DEFAULT_RECORDS
  const broker = await environment.startBroker()
  await createJobTopic(broker.address, options.partitions)
  const rejecting = environment.startQueueProcess()
  const other = environment.startQueueProcess()
  const again = environment.startQueueProcess()
  const client = await connect({ url: broker.address, clientId: 'bench' })
  try {
    await produceLoad({
      ...producing(broker, options, false),
      api: 'post',
      maxRecords: records,
      startAtMs: 0,
      measureFromMs: 0,
      measureUntilMs: Infinity,
    })
    const work = working(broker, options, false)
    const settings = { ...work.settings, 'dlq.enable': 'true' }
    const rejectingMs = monotonicMs()
    await rejecting.work({ ...work, verdict: 'reject', settings })
    await other.work({ ...work, group: OTHER_GROUP })
    const countDead = async (): Promise<number> => {
      const { counters } = await client.admin.describeQueue(QUEUE_GROUP)
      return counters['deadLettered'] ?? 0
    }
    await reached(async () => (await countDead()) >= records, 'the dead letters')
    const deadMs = monotonicMs() - rejectingMs
    await reached(async () => (await other.progress()).handled >= records, 'the other group')
    const rejected = await rejecting.finish()
    await again.work({ ...work, settings })
    const place = { group: QUEUE_GROUP, topic: QUEUE_TOPIC }
    const startMs = monotonicMs()
    const { moved } = await client.admin.redrive(place, { maxPerSec: options.perSecond })
    const movedMs = monotonicMs() - startMs
    await reached(async () => (await again.progress()).handled >= records, 'the redriven records')
    const handledMs = monotonicMs() - startMs
    const [redriven, others] = [await again.finish(), await other.finish()]
    const found = { moved, rejected: rejected.handled, redriven, others }
    const isRight =
      moved === records &&
      rejected.handled === records &&
      redriven.handled === records &&
      redriven.repeated === 0 &&
      others.handled === records &&
      others.repeated === 0
    if (!isRight) {
      throw new VerificationError(`not ${records} everywhere: ${JSON.stringify(found)}`)
    }
    await client.close()
    await broker.stop()
    environment.remove(broker.process.directory)
    return {
      figures: {
        deadLettersPerSecond: (records / deadMs) * 1000,
        redriveMs: movedMs,
        redrivenPerSecond: (records / movedMs) * 1000,
        redriveUntilHandledMs: handledMs,
      },
      verified:
        `One group rejected ${records} records, and got each of them once more by the redrive, with the place that it had in the topic; another group of the same topic handled ` +
        `${others.handled}, each once, and saw none of them again.`,
    }
  } finally {
    for (const process of [rejecting, other, again]) process.end()
    await client.close()
  }
}
