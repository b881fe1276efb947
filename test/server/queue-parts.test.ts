import { expect, it } from 'vitest'
import { BrokerError } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { GroupCoordinator } from '../../src/coordination/group/group-coordinator.ts'
import type { WorkListener } from '../../src/coordination/queue/queue-types.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { BrokerQueues } from '../../src/server/queue-parts.ts'
import { Topics } from '../../src/topic/topics.ts'
import { aBatch } from '../support/batches.ts'
import { FakeClock } from '../support/fake-clock.ts'

const LOGGER = { debug() {}, info() {}, warn() {}, error() {} }
const WORK = {
  group: 'mailer',
  topic: 'emails',
  memberId: '',
  clientId: 'test',
  host: '',
  leaseMs: 0,
  settings: { 'queue.start': 'earliest' },
}

it('deletes a queue group with all that it knows, once nobody works in it', async () => {
  const clock = new FakeClock()
  const random = new SeededRandom(1)
  const store = new MemoryStore({ clock, random })
  const topics = await Topics.open({ store, clock, random })
  const groups = await GroupCoordinator.open({ topics, clock, random })
  const parts = await BrokerQueues.open({ topics, groups, clock, random, logger: LOGGER })
  await topics.create({ name: 'emails', partitions: 1 })
  await topics.getPartition('emails', 0).append(aBatch({ records: 3 }), 'durable')

  const first = listener()
  const session = await parts.queues.work(WORK, first)
  session.credit(2, 1000)
  await clock.advance(1)
  const [delivery] = first.deliveries
  expect(delivery).toMatchObject({ first: 0, end: 2 })
  await expect(groups.delete('mailer')).rejects.toMatchObject({ code: 'GROUP_NOT_EMPTY' })
  await session.acknowledge([
    {
      token: delivery?.token ?? new Uint8Array(16),
      first: 0,
      end: 2,
      verdict: 'accept',
      delayMs: undefined,
      error: undefined,
      pauseGroupMs: 0,
    },
  ])
  await session.end()
  await groups.delete('mailer')

  await expect(parts.queues.describe('mailer')).rejects.toMatchObject({ code: 'UNKNOWN_GROUP' })
  const again = listener()
  const later = await parts.queues.work(WORK, again)
  later.credit(10, 1000)
  await clock.advance(1)
  // What it had done is forgotten: it begins anew.
  expect(again.deliveries[0]).toMatchObject({ first: 0, deliveryCount: 1 })
  await later.end()
  await groups.delete('mailer')
  await groups.declare('mailer', 'stream')
  await parts.close(new BrokerError('BROKER_DRAINING', 'the end'))
  await groups.close(new BrokerError('BROKER_DRAINING', 'the end'))
  await topics.close()
})

function listener(): WorkListener & { deliveries: { first: number; token: Uint8Array }[] } {
  const deliveries: { first: number; token: Uint8Array }[] = []
  return {
    deliveries,
    delivered: (delivery) => deliveries.push(delivery),
    leaseLost: () => undefined,
    notice: () => undefined,
    ended: () => undefined,
  }
}
