import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { aBatch } from '../support/batches.ts'
import { runCommand } from '../support/cli-io.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'
import { crc32c } from '../../src/bytes/crc32c.ts'
import { toOffset } from '../../src/common/offset.ts'
import { readMaxTimestamp } from '../../src/record/batch-header.ts'
import { OffsetIndex } from '../../src/segment/offset-index.ts'
import { segmentFileName } from '../../src/segment/segment-names.ts'
import { encodeSeal } from '../../src/segment/segment-seal.ts'
import { TimeIndex } from '../../src/segment/time-index.ts'

const BASE = toOffset(100)
const TIME_MS = 1_767_225_600_000

interface Segment {
  readonly folder: string
  readonly log: string
  readonly index: string
  readonly timeindex: string
  readonly seal: string
  /** Where each batch starts. */
  readonly positions: readonly number[]
}

/** A partition's folder with one segment of four batches of three records, its indexes and its seal. */
async function aSegment(): Promise<Segment> {
  const folder = join(temporaryDirectory(), 'orders-7')
  await mkdir(folder)
  const index = new OffsetIndex(BASE)
  const timeindex = new TimeIndex(BASE)
  const batches: Uint8Array[] = []
  const positions: number[] = []
  let position = 0
  for (let i = 0; i < 4; i++) {
    const baseOffset = BASE + i * 3
    const batch = aBatch({
      records: 3,
      baseOffset,
      leaderEpoch: 2,
      timestampMs: TIME_MS + i,
      key: `key-${i}`,
    })
    if (i > 0) index.append(toOffset(baseOffset), position)
    timeindex.maybeAppend(readMaxTimestamp(batch, 0), toOffset(baseOffset))
    positions.push(position)
    position += batch.length
    batches.push(batch)
  }
  const log = Buffer.concat(batches)
  const path = (kind: Parameters<typeof segmentFileName>[1]): string =>
    join(folder, segmentFileName(BASE, kind))
  const seal = encodeSeal({
    format: 1,
    baseOffset: BASE,
    endOffset: BASE + 12,
    sizeBytes: log.length,
    maxTimestampMs: TIME_MS + 3,
    logCrc: crc32c(log),
    indexCrc: crc32c(index.encode()),
    timeindexCrc: crc32c(timeindex.encode()),
  })
  await writeFile(path('log'), log)
  await writeFile(path('index'), index.encode())
  await writeFile(path('timeindex'), timeindex.encode())
  await writeFile(path('seal'), seal)
  return {
    folder,
    log: path('log'),
    index: path('index'),
    timeindex: path('timeindex'),
    seal: path('seal'),
    positions,
  }
}

async function change(path: string, edit: (bytes: Buffer) => Buffer): Promise<void> {
  await writeFile(path, edit(await readFile(path)))
}

function flip(at: number): (bytes: Buffer) => Buffer {
  return (bytes) => {
    bytes[at] = (bytes[at] ?? 0) ^ 1
    return bytes
  }
}

describe('dump', () => {
  it('shows every batch of a sound segment and ends with 0', async () => {
    const { log, positions } = await aSegment()
    const { code, out, err } = await runCommand(['dump', log])
    expect(err).toBe('')
    expect(code).toBe(0)
    const lines = out.trimEnd().split('\n')
    expect(lines).toHaveLength(5)
    expect(lines[1]).toMatch(
      new RegExp(
        `^  @${positions[1]} offsets \\[103, 106\\) 3 records \\d+ bytes none 2026-01-01T00:00:00.001Z epoch 2 `,
      ),
    )
    expect(lines[4]).toContain('4 batches, 12 records')
    expect(lines[4]).toContain('3 index entries, 4 time entries, sealed, sound')
  })

  it('prints one JSON object a line, records as envelopes', async () => {
    const { folder } = await aSegment()
    const { code, out } = await runCommand(['dump', '--records', '-f', 'json', folder])
    expect(code).toBe(0)
    const lines = out
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    expect(lines.map((line) => line['type'] ?? 'record')).toEqual([
      ...Array.from({ length: 4 }, () => ['batch', 'record', 'record', 'record']).flat(),
      'summary',
    ])
    expect(lines[5]).toMatchObject({ topic: 'orders', partition: 7, offset: 103, key: 'key-1' })
    expect(lines.at(-1)).toMatchObject({ batches: 4, records: 12, endOffset: 112, sound: true })
  })

  it('saves the records of a dead broker, and nothing else, in any format of records', async () => {
    const { folder } = await aSegment()
    const { code, out } = await runCommand(['dump', '--records', '-f', '%p:%o=%v\\n', folder])
    expect(code).toBe(0)
    expect(out.split('\n').slice(0, 2)).toEqual(['7:100=value-0', '7:101=value-1'])
    expect(out.trimEnd().split('\n')).toHaveLength(12)
  })

  it('names the damaged range, goes on after it, and ends with 1', async () => {
    const { log, positions } = await aSegment()
    await change(log, flip((positions[1] ?? 0) + 70))
    const { code, out, err } = await runCommand(['dump', '--quiet', log])
    expect(code).toBe(1)
    expect(err).toContain(`[${positions[1]}, ${positions[2]}): the checksum does not fit`)
    expect(out).toContain('gap: offsets [103, 106) are not here')
    expect(out).toContain('3 batches, 9 records')
    expect(out).toContain('DAMAGED')
  })

  it('tells a torn tail from damage in the middle', async () => {
    const { log, positions } = await aSegment()
    await change(log, (bytes) => bytes.subarray(0, bytes.length - 5))
    const { code, err } = await runCommand(['dump', '-q', log])
    expect(code).toBe(1)
    expect(err).toMatch(
      new RegExp(
        `\\[${positions[3]}, \\d+\\): a batch of \\d+ bytes reaches past the end; nothing whole follows: a torn tail`,
      ),
    )
  })

  it('finds its way after a length that lies', async () => {
    const { log, positions } = await aSegment()
    await change(log, flip((positions[0] ?? 0) + 8))
    const { code, err, out } = await runCommand(['dump', '-q', log])
    expect(code).toBe(1)
    expect(err).toContain(`[0, ${positions[1]})`)
    expect(out).toContain('3 batches')
  })

  it.each([
    ['a position', 7, 'where no batch starts'],
    ['an offset', 3, 'is there'],
  ])('finds an index whose entry has the wrong %s', async (_what, at, reason) => {
    const { log, index } = await aSegment()
    await change(index, flip(at))
    const { code, err } = await runCommand(['dump', '-q', log])
    expect(code).toBe(1)
    expect(err).toContain('.index')
    expect(err).toContain(reason)
    expect(err).toContain('.seal')
  })

  it('finds a timeindex that is wrong', async () => {
    const { log, timeindex } = await aSegment()
    await change(timeindex, flip(2 * 12 + 11))
    const { code, err } = await runCommand(['dump', '-q', log])
    expect(code).toBe(1)
    expect(err).toContain('.timeindex')
  })

  it('finds a seal that was changed, and a file that is not the sealed one', async () => {
    const first = await aSegment()
    await change(first.seal, flip(20))
    expect((await runCommand(['dump', '-q', first.log])).err).toContain('the seal of a segment')
    const second = await aSegment()
    await change(second.log, (bytes) => bytes.subarray(0, second.positions[3]))
    const { code, err } = await runCommand(['dump', '-q', second.log])
    expect(code).toBe(1)
    expect(err).toContain('the end offset is 109, the seal says 112')
  })

  it('never ends in anything but 0 or 1, whichever bit is wrong', async () => {
    const { folder, log } = await aSegment()
    const sound = await readFile(log)
    for (let bit = 0; bit < 61 * 8; bit += 5) {
      const bytes = Buffer.from(sound)
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      await writeFile(log, bytes)
      const { code, err } = await runCommand(['dump', '--records', '-f', 'json', folder])
      // Base offset and leader epoch lie outside the batch's checksum; the seal's covers them.
      expect(code, `bit ${bit}`).toBe(1)
      expect(err).not.toContain('error:')
    }
  })

  it('says what it wants when a path is wrong', async () => {
    const empty = temporaryDirectory()
    expect(await runCommand(['dump', join(empty, 'x.log')])).toMatchObject({ code: 2 })
    const none = await runCommand(['dump', empty])
    expect(none.code).toBe(2)
    expect(none.err).toContain('has no segments')
    const format = await runCommand(['dump', '-f', 'raw', empty])
    expect(format.code).toBe(2)
    expect(format.err).toContain('hint: add --records')
  })
})
