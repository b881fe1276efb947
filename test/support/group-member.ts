/**
 * A member of a group as a program of its own: `group-member.js SERVER GROUP KIND`, ended by SIGTERM. It consumes `orders` and writes what happens to it as JSON
 * lines to stdout, which is a file: nothing that was written is lost when it is killed. KIND: `each` and `pattern` commit by themselves (the latter
 * subscribes by a pattern), `manual` commits every record, `static:ID` is a static member.
 */
import { writeSync } from 'node:fs'
import { connect, MillraceError, text, topic } from '../../src/client/index.ts'
import type { Consumer, TopicPartition } from '../../src/client/index.ts'
import type { MemberEvent } from './member-process.ts'

const SESSION_TIMEOUT_MS = 2000
const REBALANCE_TIMEOUT_MS = 5000

function note(event: MemberEvent): void {
  writeSync(1, `${JSON.stringify(event)}\n`)
}

/** CLOCK_MONOTONIC: the same for all processes of the machine, and it goes on while one is stopped. */
function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}

function nameOf({ topic: name, partition }: TopicPartition): string {
  return `${name}-${partition}`
}

const [server = '', group = '', kind = ''] = process.argv.slice(2)
const client = await connect({ url: server, clientId: kind.replace(':', '-') })
const options = {
  group,
  commit: kind === 'manual' ? 'manual' : 'after-each',
  sessionTimeoutMs: SESSION_TIMEOUT_MS,
  rebalanceTimeoutMs: REBALANCE_TIMEOUT_MS,
  instanceId: kind.startsWith('static:') ? kind.slice(7) : undefined,
} as const

async function consume<V, K>(consumer: Consumer<V, K>): Promise<void> {
  for (const type of ['assigned', 'revoked', 'lost'] as const) {
    consumer.on(type, (partitions) => {
      note({ type, atMs: nowMs(), partitions: partitions.map(nameOf) })
    })
  }
  consumer.on('error', (error) => {
    note({ type: 'refused', atMs: nowMs(), code: error.code })
  })
  let closing: Promise<void> | undefined
  process.once('SIGTERM', () => {
    closing = consumer.close()
    // It is awaited after the loop, which ends because of it.
    closing.catch(() => undefined)
  })
  note({ type: 'started', atMs: nowMs() })
  for await (const record of consumer) {
    const partition = nameOf(record)
    note({ type: 'processed', atMs: nowMs(), partition, offset: record.offset })
    if (kind !== 'manual') continue
    const sentMs = nowMs()
    try {
      await consumer.commit(record)
      const offset = record.offset + 1
      note({ type: 'committed', atMs: sentMs, answeredMs: nowMs(), partition, offset })
    } catch (error) {
      if (!(error instanceof MillraceError)) throw error
      note({ type: 'refused', atMs: nowMs(), code: error.code })
    }
  }
  await closing
}

if (kind === 'pattern') await consume(client.consumer(/^orders$/, options))
else await consume(client.consumer(topic('orders', { value: text }), options))
await client.close()
note({ type: 'closed', atMs: nowMs() })
