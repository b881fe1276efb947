import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Command, Server, runTo } from '../support/cli-process.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'
import { SeededRandom } from '../../src/common/random.ts'

function manyLines(count: number): Buffer {
  const random = new SeededRandom(3)
  const lines: string[] = []
  for (let i = 0; i < count; i++) lines.push(`${i} ${'abcdefghij'.repeat(random.below(30))}\n`)
  return Buffer.from(lines.join(''))
}

function digest(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

describe('the command in a process of its own', () => {
  it('starts fast enough for help to feel immediate', async () => {
    const command = new Command(['--help'])
    expect(await command.code()).toBe(0)
    expect(command.out.toString()).toContain('Usage: millrace')
    expect(command.err).toBe('')
  })

  it('ends with 2 and no stack on a typing error', async () => {
    const command = new Command(['tial'])
    expect(await command.code()).toBe(2)
    expect(command.err).toBe("error: unknown command 'tial'\nhint: did you mean tail?\n")
  })

  it('ends with 1 and says what to do when no broker is there', async () => {
    const command = new Command(['topic', 'list', '--server', '127.0.0.1:1'])
    expect(await command.code()).toBe(1)
    expect(command.err).toMatch(/^error: .*\nhint: is a broker running there\?.*\n$/)
  })
})

describe('serve', () => {
  it('says one line when it is ready, and ends with 0 on SIGTERM and on SIGINT', async () => {
    const data = temporaryDirectory()
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      const server = await Server.start(data)
      expect(server.address).toMatch(/^127\.0\.0\.1:\d+$/)
      expect(await server.kill(signal)).toBe(0)
      expect(server.out.toString().split('\n')).toHaveLength(2)
      for (const line of server.err.trimEnd().split('\n'))
        expect(JSON.parse(line)).toBeTypeOf('object')
    }
  })

  it('ends with 73 on a directory that another broker holds', async () => {
    const data = temporaryDirectory()
    const first = await Server.start(data)
    const second = new Command(['serve', '--data', data, '--listen', '127.0.0.1:0'])
    expect(await second.code()).toBe(73)
    expect(second.err).toMatch(/^error: /m)
    expect(second.err).toContain('hint: stop the other broker')
    expect(await first.kill('SIGTERM')).toBe(0)
  })

  it('ends with 1 on a port that is taken', async () => {
    const first = await Server.start(temporaryDirectory())
    const second = new Command(['serve', '--data', temporaryDirectory(), '--listen', first.address])
    expect(await second.code()).toBe(1)
    expect(second.err).toContain('hint: use another port')
    await first.kill('SIGTERM')
  })

  it('ends with 74 when a flush fails, and never acknowledges what was in it', async () => {
    const server = await Server.start(temporaryDirectory(), '127.0.0.1:0', {
      FAILPOINT: 'before-sync(logs-0/0000):EIO',
    })
    expect(await (await runTo(server, ['topic', 'create', 'logs'])).code()).toBe(0)
    const producer = new Command(['produce', 'logs'], { MILLRACE_SERVER: server.address })
    onTestFinished(() => {
      producer.child.kill('SIGKILL')
    })
    producer.child.stdin.end('lost\n')
    expect(await server.code()).toBe(74)
    expect(server.err).toContain('error: the storage failed')
    expect(producer.err).not.toContain('1 record')
  })
})

describe('produce and tail', () => {
  const data = { path: '' }
  let server: Server

  beforeAll(async () => {
    data.path = mkdtempSync(join(tmpdir(), 'millrace-e2e-'))
    server = await Server.start(data.path)
  })

  afterAll(async () => {
    await server.kill('SIGTERM')
    rmSync(data.path, { recursive: true, force: true })
  })

  it('give a file back to the bit, also after kill -9 and a restart', async () => {
    const input = manyLines(100_000)
    await runTo(server, ['topic', 'create', 'text'])
    const produced = await runTo(server, ['produce', 'text'], input)
    expect(await produced.code()).toBe(0)
    expect(produced.out).toHaveLength(0)
    expect(produced.err).toMatch(/^100,000 records, /)
    const read = await runTo(server, ['tail', 'text', '--no-follow', '-f', 'raw'])
    expect(digest(read.out)).toBe(digest(input))
    expect(read.err).toBe('')
    const { address } = server
    await server.kill('SIGKILL')
    server = await Server.start(data.path, address)
    const again = await runTo(server, ['tail', 'text', '--no-follow', '-f', 'raw'])
    expect(digest(again.out)).toBe(digest(input))
    const dumped = await runTo(server, ['dump', '-q', join(data.path, 'text-0')])
    expect(dumped.err).toBe('')
    expect(await dumped.code()).toBe(0)
  })

  it('give six partitions back in order within each', async () => {
    const lines = manyLines(30_000).toString().trimEnd().split('\n')
    await runTo(server, ['topic', 'create', 'six', '-p', '6'])
    await runTo(server, ['produce', 'six'], `${lines.join('\n')}\n`)
    const read = await runTo(server, ['tail', 'six', '-o', ':end', '-f', '%p %o %v\\n'])
    const got = read.out.toString().trimEnd().split('\n')
    const next = Array.from({ length: 6 }, () => 0)
    const last = Array.from({ length: 6 }, () => -1)
    for (const line of got) {
      const [partition = 0, offset = 0, number = 0] = line.split(' ').map(Number)
      expect(offset).toBe(next[partition])
      next[partition] = offset + 1
      expect(number).toBeGreaterThan(last[partition] ?? 0)
      last[partition] = number
    }
    expect(got.map((line) => line.split(' ').slice(2).join(' ')).sort()).toEqual(lines.sort())
  })

  it('end with 0 when the reader of the pipe leaves early', async () => {
    const command = new Command(['tail', 'text', '-f', 'raw'], { MILLRACE_SERVER: server.address })
    await once(command.child.stdout, 'data')
    command.child.stdout.destroy()
    expect(await command.code()).toBe(0)
    expect(command.err).toBe('')
  })

  it('print a count and end with 130 on SIGINT', async () => {
    await runTo(server, ['topic', 'create', 'few'])
    await runTo(server, ['produce', 'few'], 'a\nb\n')
    const command = new Command(['tail', 'few', '-f', 'raw'], { MILLRACE_SERVER: server.address })
    await vi.waitFor(() => expect(command.out.toString()).toBe('a\nb\n'), { timeout: 10_000 })
    command.child.kill('SIGINT')
    expect(await command.code()).toBe(130)
    expect(command.err).toBe('2 records\n')
  })

  it('follow through a restart of the broker without a gap or a repeat', async () => {
    await runTo(server, ['topic', 'create', 'live'])
    const command = new Command(['tail', 'live', '-f', 'raw'], { MILLRACE_SERVER: server.address })
    onTestFinished(() => {
      command.child.kill('SIGKILL')
    })
    await runTo(server, ['produce', 'live'], 'before\n')
    await vi.waitFor(() => expect(command.out.toString()).toBe('before\n'), { timeout: 10_000 })
    const { address } = server
    await server.kill('SIGKILL')
    server = await Server.start(data.path, address)
    await runTo(server, ['produce', 'live'], 'after\n')
    await vi.waitFor(() => expect(command.out.toString()).toBe('before\nafter\n'), {
      timeout: 20_000,
    })
  })

  it('produce reads files as well as stdin', async () => {
    const file = join(temporaryDirectory(), 'lines.txt')
    writeFileSync(file, 'from\na file\n')
    await runTo(server, ['topic', 'create', 'files'])
    expect(await (await runTo(server, ['produce', 'files', file, file])).code()).toBe(0)
    const read = await runTo(server, ['tail', 'files', '--no-follow', '-f', 'raw'])
    expect(read.out.toString()).toBe(readFileSync(file, 'utf8').repeat(2))
    const missing = await runTo(server, ['produce', 'files', `${file}.no`])
    expect(await missing.code()).toBe(1)
    expect(missing.err).toContain('ENOENT')
  })
})

describe('demo', () => {
  it.each([
    ['log', 'nothing lost, nothing twice'],
    ['groups', 'every one at least once'],
    ['queues', 'all 300 are sent'],
  ])('of %s finds everything, cleans up and ends with 0', async (scene, proof) => {
    const folder = temporaryDirectory()
    const command = new Command(['demo', scene, '--fast'], { TMPDIR: folder })
    const code = await command.code()
    expect(command.out.toString()).toContain(proof)
    expect(command.err).toBe('')
    expect(code).toBe(0)
    expect(readdirSync(folder)).toEqual([])
  })
})
