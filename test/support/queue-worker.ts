/**
 * A worker of a queue as a program of its own: `queue-worker.js SERVER GROUP NAME KIND FILE`, ended by SIGTERM. It handles `jobs` and appends what happens to it as
 * JSON lines, in the checker's words, to FILE: nothing that was written is lost when it is killed. KIND: `hand` settles every record by hand and waits for the
 * answer, `return` by returning and throwing, `batch` leaves out what it need not say.
 * Values say what becomes of a record: `reject`, `retry` (always), `flaky` (once), else it is accepted.
 */
import { closeSync, openSync, writeSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import {
  connect,
  type Delivery,
  MillraceError,
  RejectError,
  text,
  topic,
} from '../../src/client/index.ts'
import type { QueueEvent } from './queue-checker.ts'

export const QUEUE_TOPIC = 'jobs'
export const QUEUE_LEASE_MS = 2000
export const QUEUE_CONCURRENCY = 20
/** Far more than kills can cost a record. */
export const QUEUE_ATTEMPTS = 30
const HANDLER_MS = 12

const [server = '', group = '', name = '', kind = '', path = ''] = process.argv.slice(2)
// Appended by one write call each, so that a kill leaves no half line.
const file = openSync(path, 'a')

function note(event: QueueEvent): void {
  writeSync(file, `${JSON.stringify(event)}\n`)
}

/** CLOCK_MONOTONIC: the same for all processes of the machine. */
function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}

type Job = Delivery<string>

let handled = 0
let calls = 0
const callOf = new WeakMap<Job, number>()

function begin(job: Job): string {
  const token = `${name}/${handled++}`
  const { topic: from, partition, offset, deliveryCount, failureCount } = job
  note({
    type: 'delivered',
    atMs: nowMs(),
    member: name,
    token,
    partition: `${from}-${partition}`,
    first: offset,
    end: offset + 1,
    deliveryCount,
    failureCount,
    expiresMs: nowMs() + job.leaseExpiresAt - Date.now(),
  })
  return token
}

type Said = 'accept' | 'retry' | 'reject'

function say(job: Job, token: string, verdict: Said): void {
  const call = calls++
  callOf.set(job, call)
  note({
    type: 'called',
    atMs: nowMs(),
    call,
    items: [
      {
        token,
        partition: `${job.topic}-${job.partition}`,
        first: job.offset,
        end: job.offset + 1,
        verdict,
        delayMs: undefined,
      },
    ],
  })
}

function hear(job: Job, code?: string): void {
  const call = callOf.get(job)
  if (call === undefined) return
  callOf.delete(job)
  const failures = code === undefined ? [] : [{ index: 0, code }]
  note({ type: 'answered', atMs: nowMs(), call, failures })
}

function verdictOf(job: Job): Said {
  if (job.value === 'reject' || job.value === 'retry') return job.value
  return job.value === 'flaky' && job.failureCount === 0 ? 'retry' : 'accept'
}

async function settle(job: Job, verdict: Said): Promise<void> {
  try {
    if (verdict === 'accept') await job.accept()
    else if (verdict === 'retry') await job.retry(new Error('not this time'))
    else await job.reject(new Error('never'))
    hear(job)
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error
    hear(job, error.code)
  }
}

// The broker may be killed several times before this one has found it.
const client = await connect({ url: server, clientId: name, timeoutMs: 60_000 })
const options = { group, concurrency: QUEUE_CONCURRENCY, leaseMs: QUEUE_LEASE_MS }
const worker = client.worker(
  topic(QUEUE_TOPIC, { value: text }),
  options,
  async (job, { signal }) => {
    const token = begin(job)
    await delay(HANDLER_MS * ((job.offset % 7) / 3))
    // Somebody else's by now: what it said would not count.
    if (signal.aborted) return
    const verdict = verdictOf(job)
    say(job, token, verdict)
    if (kind === 'hand') await settle(job, verdict)
    else if (verdict === 'retry') throw new Error('not this time')
    else if (verdict === 'reject') throw new RejectError('never')
  },
)
if (kind !== 'hand') {
  for (const type of ['completed', 'retrying', 'dead'] as const) {
    worker.on(type, ({ job }) => hear(job))
  }
  worker.on('stalled', ({ job }) => hear(job, 'LEASE_LOST'))
}
process.once('SIGTERM', () => {
  // What it ends with is `closed`'s to tell.
  worker.close().catch(() => undefined)
})
await worker.closed
await client.close()
closeSync(file)
