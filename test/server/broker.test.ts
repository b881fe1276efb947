import { writeFileSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { systemClock } from '../../src/common/clock.ts'
import { systemRandom } from '../../src/common/random.ts'
import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import { Broker, exitCodeOf } from '../../src/server/broker.ts'
import { parseConfig } from '../../src/server/config.ts'
import { silentLogger } from '../../src/server/logger.ts'
import type { FetchMessage } from '../../src/wire/fetch-codec.ts'
import { aBatch } from '../support/batches.ts'
import { aCommit, JoinStream } from '../support/join-stream.ts'
import { collect, RawClient } from '../support/raw-client.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

const cleanups: (() => unknown)[] = []

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function start(data: string, listen = '127.0.0.1:0'): Promise<Broker> {
  const { config } = parseConfig({ flags: { data, listen, minFreeBytes: '0' } })
  const fs = new NodeFileSystem()
  return Broker.start({
    config,
    fs,
    clock: systemClock,
    random: systemRandom,
    logger: silentLogger,
  })
}

describe('a broker on the disk', () => {
  it('finds after a clean stop what it had before', async () => {
    const data = temporaryDirectory()
    const first = await start(data)
    const writer = new RawClient(first.address)
    await writer.call('CreateTopic', { topic: 'orders', partitions: 2 })
    const batch = aBatch({ values: ['a', 'b'] })
    await writer.call('Append', {
      topic: 'orders',
      partition: 1,
      acks: 'durable',
      batch,
      compression: 'none',
      correlationId: 0,
    })
    writer.close()
    await first.stop()
    const second = await start(data)
    const reader = new RawClient(second.address)
    cleanups.push(
      () => second.stop(),
      () => reader.close(),
    )
    expect(second.report).toMatchObject({ clean: true, incarnation: 2 })
    const messages = await collect<FetchMessage>(
      reader.stream('Fetch', {
        partitions: [{ topic: 'orders', partition: 1 }],
        plainRecords: true,
      }),
    )
    const values = messages.flatMap((message) => message.records.map((r) => String(r.value)))
    expect(values).toEqual(['a', 'b'])
    expect(await reader.call('InitProducer', {})).toEqual({
      producerId: 2 * 2 ** 31,
      producerEpoch: 0,
    })
  })

  it('finds the groups after a clean stop, and a member comes back to what it had', async () => {
    const data = temporaryDirectory()
    const group = { group: 'billing', subscription: { topics: ['orders'] } }
    const first = await start(data)
    const before = new RawClient(first.address)
    await before.call('CreateTopic', { topic: 'orders', partitions: 2 })
    const member = new JoinStream(before)
    const { memberId } = await member.join(group)
    const { memberEpoch } = await member.assigned(2)
    member.say(aCommit(1, memberEpoch, { topic: 'orders', partition: 1, metadata: 'm' }))
    expect((await member.nextOf('commit')).errors).toEqual([])
    const stopped = first.stop()
    expect(await member.reason()).toBe('BROKER_DRAINING')
    before.close()
    await stopped
    const second = await start(data)
    const after = new RawClient(second.address)
    cleanups.push(
      () => second.stop(),
      () => after.close(),
    )
    const again = new JoinStream(after)
    expect(await again.join({ ...group, memberId, memberEpoch })).toMatchObject({ resumed: true })
    const { topics } = await again.assigned(2)
    expect(topics[0]?.partitions[1]).toMatchObject({ committedOffset: 0, metadata: 'm' })
  })

  it('has a member wait no longer than its session for one that has gone', async () => {
    const { config } = parseConfig({
      flags: {
        data: temporaryDirectory(),
        listen: '127.0.0.1:0',
        minFreeBytes: '0',
        groupSessionTimeoutMs: '300ms',
        groupMinSessionTimeoutMs: '200ms',
        groupRebalanceIntervalMs: '10ms',
      },
    })
    const broker = await Broker.start({
      config,
      fs: new NodeFileSystem(),
      clock: systemClock,
      random: systemRandom,
      logger: silentLogger,
    })
    const client = new RawClient(broker.address)
    cleanups.push(
      () => broker.stop(),
      () => client.close(),
    )
    await client.call('CreateTopic', { topic: 'orders', partitions: 2 })
    const group = { group: 'billing', subscription: { topics: ['orders'] } }
    const first = new JoinStream(client)
    expect(await first.join(group)).toMatchObject({ sessionTimeoutMs: 300 })
    await first.assigned(2)
    first.duplex.cancel()
    await first.end()
    const second = new JoinStream(client)
    await second.join({ ...group, sessionTimeoutMs: 60_000 })
    await second.assigned(2)
  })

  it('keeps a second one away from its directory', async () => {
    const data = temporaryDirectory()
    const first = await start(data)
    cleanups.push(() => first.stop())
    const failure: unknown = await start(data).catch((error: unknown) => error)
    expect(failure).toMatchObject({ code: 'DIRECTORY_IN_USE' })
    expect(exitCodeOf(failure)).toBe(73)
  })

  it('gives its directory up when the port is taken', async () => {
    const first = await start(temporaryDirectory())
    cleanups.push(() => first.stop())
    const data = temporaryDirectory()
    await expect(start(data, first.address)).rejects.toMatchObject({ code: 'ADDRESS_IN_USE' })
    const second = await start(data)
    expect(second.report).toMatchObject({ incarnation: 1 })
    await second.stop()
  })

  it('says that a directory cannot be used', async () => {
    const file = `${temporaryDirectory()}/file`
    writeFileSync(file, '')
    await expect(start(file)).rejects.toMatchObject({ code: 'DIRECTORY_UNUSABLE' })
  })
})
