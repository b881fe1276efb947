import { PassThrough, Writable } from 'node:stream'
import { array, assert, asyncProperty, oneof, string, uint8Array } from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { Output } from '../../src/cli/output.ts'

function collector(): { readonly stream: Writable; bytes(): Buffer; readonly writes: number[] } {
  const pieces: Buffer[] = []
  const writes: number[] = []
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      writes.push(chunk.length)
      // Taken late, as a slow pipe does: whoever reuses the buffer too early is found out.
      setImmediate(() => {
        pieces.push(Buffer.from(chunk))
        done()
      })
    },
  })
  return { stream, writes, bytes: () => Buffer.concat(pieces) }
}

describe('Output', () => {
  it('gives out what went in, in order, whatever its size', async () => {
    const large = uint8Array({ minLength: 1, maxLength: 8 }).map((bytes) =>
      Buffer.concat(Array.from({ length: 40_000 }, () => bytes)),
    )
    const pieces = array(oneof(uint8Array(), string({ unit: 'binary' }), large), { maxLength: 20 })
    await assert(
      asyncProperty(pieces, async (pieces) => {
        const target = collector()
        const out = new Output(target.stream, () => undefined)
        for (const piece of pieces) {
          if (typeof piece === 'string') out.writeText(piece)
          else out.write(piece, 0, piece.length)
          await out.settle()
        }
        await out.finish()
        const expected = Buffer.concat(pieces.map((piece) => Buffer.from(piece)))
        expect(target.bytes().equals(expected)).toBe(true)
      }),
      { numRuns: 50 },
    )
  })

  it('keeps what is being written apart from what is appended meanwhile', async () => {
    const target = collector()
    const out = new Output(target.stream, () => undefined)
    const flushes: Promise<void>[] = []
    for (let i = 0; i < 5; i++) {
      out.writeText(`${i}`.repeat(10))
      flushes.push(out.flush())
    }
    await Promise.all(flushes)
    await out.finish()
    expect(target.bytes().toString()).toBe([0, 1, 2, 3, 4].map((i) => `${i}`.repeat(10)).join(''))
  })

  it('writes many records in few writes', async () => {
    const target = collector()
    const out = new Output(target.stream, () => undefined)
    for (let i = 0; i < 10_000; i++) out.writeText('a line of text\n')
    await out.finish()
    expect(target.writes).toEqual([150_000])
  })

  it('lets a trickle out without being told', async () => {
    const target = collector()
    const out = new Output(target.stream, () => undefined)
    out.writeText('soon')
    void out.settle()
    await vi.waitFor(() => expect(target.bytes().toString()).toBe('soon'))
  })

  it('takes a closed pipe for an end, and any other error for one', async () => {
    const closed = new PassThrough()
    let told = 0
    const quiet = new Output(closed, () => told++)
    closed.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
    await vi.waitFor(() => expect(quiet.closed).toBe(true))
    quiet.writeText('nobody reads this')
    await quiet.finish()
    expect(told).toBe(1)

    const broken = new PassThrough()
    const loud = new Output(broken, () => undefined)
    broken.destroy(Object.assign(new Error('write ENOSPC'), { code: 'ENOSPC' }))
    await vi.waitFor(() => expect(loud.closed).toBe(true))
    await expect(loud.finish()).rejects.toThrow('ENOSPC')
  })
})
