import { scheduler } from 'node:timers/promises'
import { expect, it, onTestFinished } from 'vitest'
import { type Client, connect, text, topic } from '../../src/client/index.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { compile } from '../support/compile.ts'
import { checkQueueHistory, type QueueEvent, queueStory } from '../support/queue-checker.ts'
import { QueueWorkerProcess } from '../support/queue-worker-process.ts'
import { ServerProcess } from '../support/server-process.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

/** QUEUE_RECORDS, QUEUE_BROKER_KILLS and QUEUE_WORKER_KILLS make it shorter. */
const RECORDS = Number(process.env['QUEUE_RECORDS'] ?? 50_000)
const BROKER_KILLS = Number(process.env['QUEUE_BROKER_KILLS'] ?? 20)
const WORKER_KILLS = Number(process.env['QUEUE_WORKER_KILLS'] ?? 50)
const SEED = Number(process.env['E2E_SEED'] ?? 20_261_123)
const WORKERS = 5
const PARTITIONS = 2
const GROUP = 'workers'
/** As `queue-worker.ts` has them: importing it would run it. */
const LEASE_MS = 2000
const ATTEMPTS = 30
const FEW_ATTEMPTS = 3
const POLL_MS = 20
const PATIENCE_MS = 60_000

const jobs = topic('jobs', { value: text })

type Fate = 'accept' | 'flaky' | 'retry' | 'reject'

/** What becomes of record number `i`, whoever has it. */
function fateOf(i: number): Fate {
  const place = (Math.imul(i + 1, 0x9e3779b1) >>> 0) % 1000
  if (place < 5) return 'reject'
  if (place < 10) return 'retry'
  return place < 40 ? 'flaky' : 'accept'
}

it('a queue of processes loses nothing and does nothing twice through SIGKILLs of broker and workers', async () => {
  const random = new SeededRandom(SEED)
  const program = compile('test/support/queue-worker.ts')
  onTestFinished(() => program.remove())
  const folder = temporaryDirectory()
  const server = await ServerProcess.start()
  const client = await connect({ url: server.address })
  onTestFinished(() => client.close())
  await client.admin.createTopic('jobs', { partitions: PARTITIONS, config: { jobs: 'true' } })
  await client.admin.configureQueue(GROUP, {
    set: {
      'queue.start': 'earliest',
      'retry.max.attempts': String(ATTEMPTS),
      'retry.backoff.initial.ms': '50ms',
      'retry.backoff.max.ms': '500ms',
      'dlq.enable': 'true',
    },
  })

  const workers: QueueWorkerProcess[] = []
  const startWorker = (): QueueWorkerProcess => {
    const number = workers.length
    const worker = QueueWorkerProcess.start({
      name: `w${number}`,
      number,
      server: server.address,
      group: GROUP,
      kind: number % 2 === 0 ? 'hand' : 'return',
      program: program.url,
      folder,
    })
    workers.push(worker)
    return worker
  }
  let running = Array.from({ length: WORKERS }, startWorker)

  const producer = client.producer()
  const fates = new Map<string, Fate>()
  let sent = 0
  const send = async (count: number): Promise<void> => {
    const receipts = Array.from({ length: Math.min(count, RECORDS - sent) }, async () => {
      const fate = fateOf(sent++)
      const attempts = fate === 'retry' ? FEW_ATTEMPTS : undefined
      const { partition, offset } = await producer.send(jobs, { value: fate, attempts })
      fates.set(`jobs-${partition}:${offset}`, fate)
    })
    await Promise.all(receipts)
  }

  const kills = shuffle(
    [
      ...Array.from({ length: BROKER_KILLS }, () => 'broker' as const),
      ...Array.from({ length: WORKER_KILLS }, () => 'worker' as const),
    ],
    random,
  )
  const share = Math.ceil(RECORDS / Math.max(1, kills.length))
  for (const victim of kills) {
    const sending = send(share)
    sending.catch(() => undefined) // Awaited below.
    await scheduler.wait(50 + random.below(250))
    if (victim === 'broker') {
      await server.kill('SIGKILL')
      await server.restart()
    } else {
      const ready = running.filter((worker) => worker.hasWorked)
      const one = random.pick(ready.length > 0 ? ready : running)
      one.kill()
      running = [...running.filter((worker) => worker !== one), startWorker()]
    }
    await sending
  }
  await send(RECORDS)
  await producer.close()
  await finished(client)
  const letters: QueueEvent[] = []
  for await (const dead of client.admin.deadLetters({ group: GROUP, topic: 'jobs' })) {
    letters.push({
      type: 'dead-letter',
      id: `${dead.sourcePartition}/${dead.sourceOffset}`,
      partition: `${dead.sourceTopic}-${dead.sourcePartition}`,
      offset: dead.sourceOffset,
      reason: dead.reason,
      deliveries: dead.deliveries,
      failures: dead.failures,
    })
  }
  const ends = await client.admin.offsets('jobs', 'end')
  for (const worker of running) worker.leave()
  const codes = await Promise.all(running.map((worker) => worker.ended))
  const complaints = workers.map(({ stderr }) => stderr).filter((words) => words !== '')
  expect({ complaints, codes: new Set(codes) }).toEqual({ complaints: [], codes: new Set([0]) })

  const handled = workers.flatMap((worker) => worker.history())
  handled.sort((a, b) => timeOf(a) - timeOf(b))
  const ended = [...ends].map(([partition, endOffset]): QueueEvent => ({
    type: 'ended',
    partition: `jobs-${partition}`,
    endOffset,
  }))
  const violations = checkQueueHistory([...handled, ...letters, ...ended], {
    maxAttempts: ATTEMPTS,
    attemptsOf: (partition, offset) =>
      fates.get(`${partition}:${offset}`) === 'retry' ? FEW_ATTEMPTS : undefined,
    seenBy: 'workers',
    slackMs: LEASE_MS,
  })
  const deliveries = handled.filter(({ type }) => type === 'delivered').length
  console.log(
    `seed ${SEED}: ${fates.size} records, ${deliveries} handled, ${letters.length} dead, ` +
      `${BROKER_KILLS} kills of the broker, ${WORKER_KILLS} of workers`,
  )
  if (violations[0] !== undefined) {
    console.log(queueStory([...handled, ...letters], violations[0].facts).join('\n'))
  }
  expect({ seed: SEED, violations: violations.slice(0, 20) }).toEqual({
    seed: SEED,
    violations: [],
  })
  expect([...ends.values()].reduce((sum, end) => sum + end, 0)).toBe(RECORDS)
  const dead = letters.flatMap((event) =>
    event.type === 'dead-letter' ? [`${event.partition}:${event.offset}`] : [],
  )
  const poison = [...fates].filter(([, fate]) => fate === 'reject' || fate === 'retry')
  expect(dead.sort()).toEqual(poison.map(([place]) => place).sort())
}, 300_000)

/** Nothing is left to do, says the broker. */
async function finished(client: Client): Promise<void> {
  const untilMs = performance.now() + PATIENCE_MS
  for (;;) {
    const { topics } = await client.admin.describeQueue(GROUP)
    const partitions = topics.flatMap((one) => one.partitions)
    const isDone = partitions.every(
      ({ startOffset, highWatermark, error }) =>
        error === undefined && startOffset === highWatermark,
    )
    if (isDone && partitions.length >= PARTITIONS) return
    if (performance.now() > untilMs) {
      throw new Error(`still to be done: ${JSON.stringify(partitions)}`)
    }
    await scheduler.wait(5 * POLL_MS)
  }
}

function shuffle<T>(items: T[], random: SeededRandom): T[] {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    const kept = items[i] as T // Both are within the list.
    items[i] = items[j] as T
    items[j] = kept
  }
  return items
}

function timeOf(event: QueueEvent): number {
  return 'atMs' in event ? event.atMs : Infinity
}
