import { array, assert, asyncProperty, integer, uint8Array } from 'fast-check'
import { describe, expect, it } from 'vitest'
import { LineReader } from '../../src/cli/line-reader.ts'

async function* inPieces(bytes: Uint8Array, cuts: readonly number[]): AsyncGenerator<Uint8Array> {
  let from = 0
  for (const cut of [...cuts, bytes.length].sort((a, b) => a - b)) {
    const to = Math.min(Math.max(cut, from), bytes.length)
    if (to > from) yield await Promise.resolve(bytes.slice(from, to))
    from = to
  }
}

async function linesOf(reader: LineReader): Promise<Buffer[]> {
  const lines: Buffer[] = []
  do {
    while (reader.next()) lines.push(Buffer.from(reader.bytes.subarray(reader.start, reader.end)))
  } while (await reader.more())
  return lines
}

describe('LineReader', () => {
  it('finds the same lines however the stream is cut', async () => {
    const letters = integer({ min: 0, max: 3 }).map((letter) =>
      letter === 0 ? 0x0a : 0x60 + letter,
    )
    const cases = array(letters, { maxLength: 200 }).map((bytes) => Uint8Array.from(bytes))
    await assert(
      asyncProperty(
        cases,
        array(integer({ min: 0, max: 200 }), { maxLength: 8 }),
        async (bytes, cuts) => {
          const text = Buffer.from(bytes).toString('latin1')
          const expected = text.split('\n')
          if (expected.at(-1) === '') expected.pop()
          const reader = new LineReader(inPieces(bytes, cuts), 0x0a, 1_000)
          const lines = await linesOf(reader)
          expect(lines.map((line) => line.toString('latin1'))).toEqual(expected)
          expect(reader.lines).toBe(expected.length)
        },
      ),
    )
  })

  it('gives any bytes back when they are joined again', async () => {
    await assert(
      asyncProperty(uint8Array({ maxLength: 300 }), async (bytes) => {
        const lines = await linesOf(new LineReader(inPieces(bytes, [100]), 0, 1_000))
        const joined = Buffer.concat(lines.flatMap((line) => [line, Buffer.of(0)]))
        const ended = bytes.length === 0 || bytes.at(-1) === 0
        expect(joined).toEqual(Buffer.concat([bytes, ended ? Buffer.alloc(0) : Buffer.of(0)]))
      }),
    )
  })

  it('keeps carriage returns: lines are bytes', async () => {
    const lines = await linesOf(new LineReader(inPieces(Buffer.from('a\r\nb'), []), 0x0a, 10))
    expect(lines.map(String)).toEqual(['a\r', 'b'])
  })

  it('refuses a line above the limit with its number, before it has read all of it', async () => {
    async function* endless(): AsyncGenerator<Uint8Array> {
      yield await Promise.resolve(Buffer.from('ok\n'))
      for (;;) yield await Promise.resolve(Buffer.alloc(100, 0x61))
    }
    await expect(linesOf(new LineReader(endless(), 0x0a, 1_000))).rejects.toThrow(
      'line 2 of the input is longer than 1000 bytes',
    )
  })
})
