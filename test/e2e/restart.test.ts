import { once } from 'node:events'
import { createReadStream, createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { type Client, connect, text, topic } from '../../src/client/index.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { GIB, MIB } from '../../src/common/units.ts'
import { digestOf, runCommand } from '../support/command-process.ts'
import { ServerProcess } from '../support/server-process.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

const FILE_BYTES: number = process.env['BIG'] === '1' ? GIB : 64 * MIB
const PATIENCE_MS = process.env['BIG'] === '1' ? 600_000 : 110_000

/** Line `number` of the file, the same each time: a log line, a short one, JSON, text of many alphabets, now and then a very long one. */
function makeLine(number: number): string {
  const random = new SeededRandom(number)
  const words =
    'αβγ größe 漢字 naïve 🚚 connection reset by peer\tGET /api/v1/orders "quoted" \\n\r'.split(' ')
  const some = (count: number): string =>
    Array.from({ length: count }, () => random.pick(words)).join(' ')
  switch (number % 5) {
    case 0:
      return `${number}`
    case 1:
      return `${number} 2026-01-17T08:30:${String(number % 60).padStart(2, '0')}.123Z INFO ${some(random.below(40))}`
    case 2:
      return `${number} {"order":${random.uint32()},"text":${JSON.stringify(some(random.below(12)))}}`
    case 3:
      return `${number} ${'='.repeat(random.below(300))}`
    default:
      return `${number} ${number % 4999 === 4 ? 'x'.repeat(200_000) : some(random.below(80))}`
  }
}

/** Writes lines until the file has the size. Resolves to their number. */
async function writeLines(path: string, bytes: number): Promise<number> {
  const file = createWriteStream(path, { highWaterMark: MIB })
  let number = 0
  for (let written = 0; written < bytes;) {
    const lines: string[] = []
    for (let i = 0; i < 2_000 && written < bytes; i++) {
      const line = `${makeLine(number++)}\n`
      written += Buffer.byteLength(line)
      lines.push(line)
    }
    if (!file.write(lines.join(''))) await once(file, 'drain')
  }
  file.end()
  await once(file, 'close')
  return number
}

describe('a large text file', () => {
  it(
    'comes back identical from one partition, and again after kill -9 and a restart',
    async () => {
      const folder = temporaryDirectory()
      const input = join(folder, 'input')
      const count = await writeLines(input, FILE_BYTES)
      const expected = await digestOf(input)
      const server = await ServerProcess.start()
      const run = (argv: readonly string[], files: { input?: string; output?: string } = {}) =>
        runCommand(argv, { server: server.address, ...files })
      expect((await run(['topic', 'create', 'lines'])).code).toBe(0)

      const produced = await run(['produce', 'lines'], { input })
      expect(produced.code).toBe(0)
      expect(produced.err).toContain(`${new Intl.NumberFormat('en').format(count)} records`)

      const output = join(folder, 'output')
      const tail = ['tail', 'lines', '--no-follow', '-f', 'raw']
      expect(await run(tail, { output })).toEqual({ code: 0, err: '' })
      expect(await digestOf(output)).toBe(expected)

      await server.kill('SIGKILL')
      await server.restart()
      expect(server.recovery?.clean).toBe(false)
      expect(await run(tail, { output })).toEqual({ code: 0, err: '' })
      expect(await digestOf(output)).toBe(expected)
    },
    PATIENCE_MS,
  )

  it(
    'comes back whole from six partitions, each in the order of the file, also after kill -9',
    async () => {
      const folder = temporaryDirectory()
      const input = join(folder, 'input')
      const count = await writeLines(input, FILE_BYTES)
      const server = await ServerProcess.start()
      const run = (argv: readonly string[], files: { input?: string; output?: string } = {}) =>
        runCommand(argv, { server: server.address, ...files })
      expect((await run(['topic', 'create', 'six', '-p', '6'])).code).toBe(0)
      expect((await run(['produce', 'six'], { input })).code).toBe(0)

      const output = join(folder, 'output')
      const tail = ['tail', 'six', '--no-follow', '-f', '%p %o %v\\n']
      for (const round of ['before the kill', 'after it']) {
        expect(await run(tail, { output }), round).toEqual({ code: 0, err: '' })
        expect(await checkPartitions(output), round).toEqual({ lines: count, partitions: 6 })
        await server.kill('SIGKILL')
        await server.restart()
      }
    },
    PATIENCE_MS,
  )
})

/** Each line is the one of its number, once; offsets have no gaps; numbers rise within a partition. */
async function checkPartitions(path: string): Promise<{ lines: number; partitions: number }> {
  const nextOffsets: number[] = []
  const lastNumbers: number[] = []
  let lines = 0
  let problem: string | undefined
  // A carriage return is a byte like any other, and readline would end a line there: split by hand.
  for await (const line of splitLines(path)) {
    const [, partitionText = '', offsetText = '', value = ''] =
      /^(\d+) (\d+) ([^]*)$/.exec(line) ?? []
    const partition = Number(partitionText)
    const number = Number.parseInt(value, 10)
    const isGood =
      Number(offsetText) === (nextOffsets[partition] ?? 0) &&
      number > (lastNumbers[partition] ?? -1) &&
      value === makeLine(number)
    if (!isGood) problem ??= `${partitionText}:${offsetText} ${value.slice(0, 200)}`
    nextOffsets[partition] = Number(offsetText) + 1
    lastNumbers[partition] = number
    lines++
  }
  expect(problem).toBeUndefined()
  return { lines, partitions: nextOffsets.filter((next) => next > 0).length }
}

async function* splitLines(path: string): AsyncGenerator<string> {
  let rest = ''
  for await (const piece of createReadStream(path, { encoding: 'utf8', highWaterMark: MIB })) {
    const lines = (rest + String(piece)).split('\n')
    rest = lines.pop() ?? ''
    yield* lines
  }
  if (rest !== '') throw new Error('the last line does not end')
}

const orders = topic('orders', { value: text })

interface Placed {
  readonly partition: number
  readonly offset: number
}

/** Every record of the topic by its value. A value that is there twice is an error. */
async function readAll(client: Client): Promise<Map<string, Placed>> {
  const found = new Map<string, Placed>()
  const next: number[] = []
  const stream = client.read(orders, { from: 'start', until: 'end' })
  for await (const { partition, offset, value } of stream) {
    expect(offset).toBe(next[partition] ?? 0)
    next[partition] = offset + 1
    const key = value ?? ''
    if (found.has(key)) throw new Error(`${key} is there twice`)
    found.set(key, { partition, offset })
  }
  return found
}

describe('kill -9 in the middle of producing', () => {
  it('loses no acknowledged record and leaves none twice, while the client goes on by itself', async () => {
    const server = await ServerProcess.start()
    const client = await connect({ url: server.address, clientId: 'test' })
    try {
      await client.admin.createTopic('orders', { partitions: 3 })
      const producer = client.producer({ batchBytes: 4_096 })
      const receipts = new Map<string, Placed>()
      const perRound = 20_000
      const kills = 3
      let sent = 0
      for (let round = 0; round < kills; round++) {
        const sends: Promise<void>[] = []
        const killWhen = receipts.size + perRound / 4
        let killedAt = 0
        let kill = (): void => {}
        const isDue = new Promise<void>((resolve) => {
          kill = resolve
        })
        const killed = isDue.then(() => server.kill('SIGKILL'))
        for (let i = 0; i < perRound; i++) {
          const value = `order ${sent++}`
          const sending = producer.send(orders, { key: `k${i % 100}`, value })
          sends.push(
            sending.then(({ partition, offset }) => {
              receipts.set(value, { partition, offset })
              if (receipts.size >= killWhen && killedAt === 0) {
                killedAt = receipts.size
                kill()
              }
              return undefined
            }),
          )
          // Let answers in, or all would be sent before the first.
          if (i % 500 === 0) await new Promise(setImmediate)
        }
        await killed
        // It was in the middle: not everything had been acknowledged.
        expect(killedAt).toBeLessThan(sent)
        await server.restart()
        await Promise.all(sends)
      }
      await producer.close()
      expect(receipts.size).toBe(sent)

      const found = await readAll(client)
      expect(found.size).toBe(sent)
      expect(found).toEqual(receipts)

      // And the disk says so too, not only the memory of the broker that answered.
      await server.kill('SIGKILL')
      await server.restart()
      expect(await readAll(client)).toEqual(receipts)
    } finally {
      await client.close()
    }
  })

  it('lets a reader go on where it was', async () => {
    const server = await ServerProcess.start()
    const client = await connect({ url: server.address, clientId: 'test' })
    try {
      await client.admin.createTopic('orders', { partitions: 1 })
      const producer = client.producer()
      const seen: string[] = []
      const total = 3_000
      const reading = (async () => {
        for await (const { value } of client.read(orders, { from: 'start' })) {
          seen.push(value ?? '')
          if (seen.length === total) return
        }
      })()
      const expected: string[] = []
      for (let round = 0; round < 3; round++) {
        const batch = Array.from({ length: total / 3 }, (_, i) => `order ${round} ${i}`)
        expected.push(...batch)
        await producer.sendAll(
          orders,
          batch.map((value) => ({ value })),
        )
        if (round === 2) break
        await server.kill('SIGKILL')
        await server.restart()
      }
      await reading
      expect(seen).toEqual(expected)
      await producer.close()
    } finally {
      await client.close()
    }
  })
})
