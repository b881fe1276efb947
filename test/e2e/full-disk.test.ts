import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished, type TestContext, vi } from 'vitest'
import { bytes, type Client, connect, topic } from '../../src/client/index.ts'
import { MIB } from '../../src/common/units.ts'
import { ServerProcess } from '../support/server-process.ts'

/** Room for the engine's ballast of 64 MiB and for some segments. */
const DISK_BYTES: number = 160 * MIB

/** A file system of its own, which can be filled without harm. Skips the test, with the reason, where none can be mounted. */
function mountSmallDisk(context: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'millrace-disk-'))
  onTestFinished(() => rmSync(path, { recursive: true, force: true }))
  try {
    const size = `size=${DISK_BYTES},mode=0700`
    execFileSync('mount', ['-t', 'tmpfs', '-o', size, 'millrace-test', path], { stdio: 'pipe' })
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    context.skip(`no small file system can be mounted here: ${why}`)
  }
  onTestFinished(() => {
    execFileSync('umount', ['--lazy', path])
  })
  return path
}

const filler = topic('filler', { value: bytes })
const kept = topic('kept', { value: bytes })

function valueOf(number: number): Buffer {
  const value = Buffer.alloc(64 * 1024, number & 0xff)
  value.writeUInt32BE(number)
  return value
}

interface Ledger {
  /** Number of each record that was acknowledged, at its offset. */
  readonly acknowledged: Map<number, number>
  /** Numbers of those that failed. One whose answer did not come in time may be there or not. */
  readonly failed: number[]
  next: number
}

/** Sends, one after the other, until one fails. Resolves to the error. */
async function fill(client: Client, ledger: Ledger): Promise<unknown> {
  // A full disk may pass, so a producer tries again for as long as this. A new one each time: who has failed waits before it tries again.
  const producer = client.producer({ deliveryTimeoutMs: 1_500 })
  for (;;) {
    const number = ledger.next++
    try {
      const { offset } = await producer.send(filler, { value: valueOf(number) })
      ledger.acknowledged.set(offset, number)
    } catch (error) {
      ledger.failed.push(number)
      return error
    }
  }
}

/** Everything acknowledged is at its offset, whole; anything else is something that failed. */
async function checkAll(client: Client, ledger: Ledger): Promise<void> {
  let found = 0
  for await (const { offset, value } of client.read(filler, { from: 'start', until: 'end' })) {
    const bytesOfRecord = Buffer.from(value ?? [])
    const number = bytesOfRecord.readUInt32BE()
    expect(bytesOfRecord.equals(valueOf(number))).toBe(true)
    const promised = ledger.acknowledged.get(offset)
    if (promised === undefined) expect(ledger.failed).toContain(number)
    else {
      expect(number).toBe(promised)
      found++
    }
  }
  expect(found).toBe(ledger.acknowledged.size)
}

it('refuses appends on a full disk by name, keeps all that it took, and goes on when there is room', async (context) => {
  const directory = mountSmallDisk(context)
  const server = await ServerProcess.start({
    directory: join(directory, 'data'),
    flags: ['--min-free-bytes', '8MiB'],
  })
  const client = await connect({ url: server.address, clientId: 'test' })
  onTestFinished(() => client.close())
  await client.admin.createTopic('filler', {
    partitions: 1,
    config: { 'segment.bytes': String(8 * MIB), 'file.delete.delay.ms': '0' },
  })
  await client.admin.createTopic('kept', { partitions: 1 })
  await client.producer().send(kept, { value: Buffer.from('precious') })
  const ledger: Ledger = { acknowledged: new Map(), failed: [], next: 0 }
  const isRefusal = { code: expect.stringMatching(/^(?:STORAGE_FULL|APPEND_TIMEOUT)$/) as unknown }
  // At first the broker gives up its ballast, which is real space …
  expect(await fill(client, ledger)).toMatchObject(isRefusal)
  // By ENOSPC or by the floor: whichever comes first, for the floor is looked at once a second.
  expect(server.log).toMatch(/ENOSPC|appends are refused/)
  await vi.waitFor(() => expect(server.log).toContain('appends are taken'), { timeout: 20_000 })
  expect(server.log).toContain('the ballast file has been given up')
  // … and the second time there is none left.
  expect(await fill(client, ledger)).toMatchObject(isRefusal)
  await vi.waitFor(async () => expect((await client.admin.broker()).storageFull).toBe(true), {
    timeout: 20_000,
  })
  expect(ledger.acknowledged.size).toBeGreaterThan(100)

  // It lives, and reads.
  await checkAll(client, ledger)

  // The broker's own word for it, without the client's patience.
  const refused = client.producer({ deliveryTimeoutMs: 1_000, idempotent: false })
  await expect(refused.send(kept, { value: Buffer.from('more') })).rejects.toMatchObject(isRefusal)

  // A crash in that state is none.
  await server.kill('SIGKILL')
  await server.restart()
  expect(server.recovery?.clean).toBe(false)
  await checkAll(client, ledger)

  // Room is made: it goes on by itself, and what was there is still there.
  await client.admin.deleteRecords('filler', new Map([[0, 'end']]))
  const patient = client.producer()
  const receipt = await patient.send(kept, { value: Buffer.from('again') })
  const values: string[] = []
  for await (const { value } of client.read(kept, { from: 'start', until: 'end' })) {
    values.push(Buffer.from(value ?? []).toString())
  }
  expect(values[0]).toBe('precious')
  expect(values[receipt.offset]).toBe('again')
  expect((await client.admin.broker()).storageFull).toBe(false)
  expect((await server.kill('SIGTERM')).code).toBe(0)
}, 120_000)
