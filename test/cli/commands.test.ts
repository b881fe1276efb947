import { PassThrough } from 'node:stream'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { aFakeIo, runCommand } from '../support/cli-io.ts'
import type { CommandResult, FakeIoShape } from '../support/cli-io.ts'
import { run } from '../../src/cli/run.ts'
import { systemClock } from '../../src/common/clock.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { NodeFileSystem } from '../../src/fs/node-file-system.ts'
import { MemoryStore } from '../../src/log/memory/memory-store.ts'
import { Broker } from '../../src/server/broker.ts'
import { parseConfig } from '../../src/server/config.ts'
import { silentLogger } from '../../src/server/logger.ts'

let broker: Broker
let made = 0

beforeAll(async () => {
  const random = new SeededRandom(11)
  broker = await Broker.start({
    config: parseConfig({ flags: { listen: '127.0.0.1:0' } }).config,
    fs: new NodeFileSystem(),
    clock: systemClock,
    random,
    logger: silentLogger,
    storeFactory: ({ clock }) => Promise.resolve(new MemoryStore({ clock, random })),
  })
})

afterAll(async () => {
  await broker.stop()
})

/** Runs a command against the broker. */
function millrace(argv: readonly string[], shape: FakeIoShape = {}): Promise<CommandResult> {
  return runCommand(argv, { ...shape, env: { MILLRACE_SERVER: broker.address, ...shape.env } })
}

async function aTopic(partitions = 1): Promise<string> {
  const name = `topic-${++made}`
  const { code, err } = await millrace(['topic', 'create', name, '-p', String(partitions)])
  expect(err).toBe('')
  expect(code).toBe(0)
  return name
}

async function aTopicOf(lines: readonly string[], ...flags: string[]): Promise<string> {
  const name = await aTopic()
  const input = lines.map((line) => `${line}\n`).join('')
  const { code, err } = await millrace(['produce', name, ...flags], { input })
  expect(err).toContain(`${lines.length} record`)
  expect(code).toBe(0)
  return name
}

async function tailOf(...argv: readonly string[]): Promise<string> {
  const { code, out, err } = await millrace(['tail', '--no-follow', ...argv])
  expect(err).toBe('')
  expect(code).toBe(0)
  return out
}

describe('topic', () => {
  it('create, list, describe, alter and delete speak text', async () => {
    const name = await aTopic(2)
    expect((await millrace(['topic', 'create', name, '-p', '2'])).out).toContain(
      'was there already',
    )
    expect((await millrace(['topic', 'list'])).out).toMatch(new RegExp(`^${name} +2 +0 +0B$`, 'm'))
    expect((await millrace(['topic', 'describe', name])).out).toContain('retention.ms')
    const altered = await millrace(['topic', 'alter', name, '--set', 'retention.ms=1h', '-p', '3'])
    expect(altered.code).toBe(0)
    expect(altered.out).toMatch(/^retention\.ms +\S+ +topic/m)
    expect((await millrace(['topic', 'describe', name])).out).toMatch(/^ +2 +0 +0 +0/m)
    expect((await millrace(['topic', 'alter', name, '--clear', 'retention.ms'])).code).toBe(0)
    expect((await millrace(['topic', 'delete', name])).out).toBe(`topic ${name} deleted\n`)
    expect((await millrace(['topic', 'list'])).out).not.toMatch(new RegExp(`^${name} `, 'm'))
  })

  it('changes nothing with --dry-run', async () => {
    const name = `topic-${++made}`
    expect((await millrace(['topic', 'create', name, '--dry-run'])).out).toContain(
      'could be created',
    )
    expect((await millrace(['topic', 'describe', name])).code).toBe(1)
  })

  it('names what is near an unknown topic', async () => {
    const name = await aTopic()
    const { code, err } = await millrace(['topic', 'describe', `${name}x`])
    expect(code).toBe(1)
    expect(err).toMatch(/^error: /)
    expect(err).toContain(name)
    expect(err.trimEnd().split('\n').length).toBeLessThanOrEqual(2)
  })

  it('tells the rule that a name breaks', async () => {
    for (const bad of ['..', 'a/b', 'x'.repeat(300)]) {
      const { code, err } = await millrace(['topic', 'create', bad])
      expect(code).toBe(1)
      expect(err).toContain('topic name')
    }
  })

  it('deletes records before a position', async () => {
    const name = await aTopicOf(['a', 'b', 'c', 'd'])
    const { code, out } = await millrace([
      'topic',
      'delete-records',
      name,
      '--before',
      '-1',
      '--format',
      'json',
    ])
    expect(code).toBe(0)
    expect(JSON.parse(out)).toEqual({
      topic: name,
      partitions: [{ partition: 0, logStartOffset: 3 }],
    })
    expect(await tailOf(name, '-f', 'raw')).toBe('d\n')
  })

  it('asks before it deletes on a terminal, and takes no for an answer', async () => {
    const name = await aTopic()
    const input = new PassThrough()
    const stdin = Object.assign(input, { isTTY: true })
    const answer = millrace(['topic', 'delete', name], { stdin, terminal: true })
    input.write('n\n')
    const { code, err } = await answer
    expect(err).toContain(`delete ${name} with all records?`)
    expect(code).toBe(1)
    expect((await millrace(['topic', 'describe', name])).code).toBe(0)
  })
})

describe('every admin command', () => {
  it('answers --format json with one JSON document a line', async () => {
    const name = await aTopicOf(['x'])
    const made = await millrace([
      'group',
      'reset',
      'g',
      '--to',
      'start',
      '--topic',
      name,
      '--create',
      '--yes',
    ])
    expect(made.err).toBe('')
    const commands: readonly (readonly string[])[] = [
      ['topic', 'create', `${name}-a`, `${name}-b`],
      ['topic', 'list'],
      ['topic', 'describe', name],
      ['topic', 'alter', name, '--set', 'retention.ms=1d'],
      ['group', 'list'],
      ['group', 'describe', 'g'],
      ['group', 'reset', 'g', '--to', 'end', '--dry-run'],
      ['group', 'reset', 'g', '--to', 'end', '--yes'],
      ['group', 'export', 'g'],
      ['group', 'delete-offsets', 'g', '--topic', name],
      ['group', 'delete', 'g'],
      ['topic', 'delete-records', name, '-b', 'end'],
      ['topic', 'delete', `${name}-a`, `${name}-b`],
      ['health'],
      ['version'],
      ['config', 'list'],
      ['serve', '--print-config'],
    ]
    for (const argv of commands) {
      const { code, out, err } = await millrace([...argv, '--format', 'json'])
      expect(err, argv.join(' ')).toBe('')
      expect(code, argv.join(' ')).toBe(0)
      const lines = out.trimEnd().split('\n')
      const isOfTwo = argv[0] === 'topic' && (argv[1] === 'create' || argv[1] === 'delete')
      expect(lines.length).toBe(isOfTwo ? 2 : 1)
      for (const line of lines) expect(JSON.parse(line)).toBeTypeOf('object')
    }
  })

  it('takes table for text, as other tools call it', async () => {
    const { code, out } = await millrace(['group', 'list', '--format', 'table'])
    expect(code).toBe(0)
    expect(out).toMatch(/^GROUP +TYPE +STATE/)
  })

  it('takes the server from --server before MILLRACE_SERVER', async () => {
    const wrong = { MILLRACE_SERVER: '127.0.0.1:1' }
    expect((await millrace(['health', '--server', broker.address], { env: wrong })).code).toBe(0)
  })

  it('health --wait returns as soon as the broker answers', async () => {
    const { code, out } = await millrace(['health', '--wait', '30s'])
    expect(code).toBe(0)
    expect(out).toMatch(/^healthy \(version /)
  })
})

describe('produce and tail', () => {
  it('give lines back as they are, bytes that are no text included', async () => {
    const name = await aTopic()
    const input = Buffer.from([0x61, 0x0a, 0x0a, 0xff, 0x00, 0x0d, 0x0a, 0xc3, 0x0a])
    expect((await millrace(['produce', name], { input })).code).toBe(0)
    const { outBytes } = await millrace(['tail', name, '--no-follow', '-f', 'raw'])
    expect(outBytes).toEqual(input)
  })

  it.each(['none', 'lz4', 'gzip'])('give a few MiB back, packed with %s', async (codec) => {
    const name = await aTopic()
    const random = new SeededRandom(5)
    const lines = Array.from(
      { length: 20_000 },
      (_, i) => `${i} ${'x'.repeat(random.below(300))}\n`,
    )
    const input = Buffer.from(lines.join(''))
    const produced = await millrace(['produce', name, '-z', codec], { input })
    expect(produced.err).toMatch(/^20,000 records, /)
    expect(produced.out).toBe('')
    const { outBytes } = await millrace(['tail', name, '--no-follow', '-f', 'raw'])
    expect(outBytes.equals(input)).toBe(true)
  })

  it('split keys off, set headers and partitions, and make tombstones', async () => {
    const name = await aTopic(3)
    const { code } = await millrace(
      ['produce', name, '-k', '\\t', '-H', 'a=1', '-H', 'b=', '-p', '2', '-Z'],
      { input: 'k\tv\nnokey\ngone\t\n' },
    )
    expect(code).toBe(0)
    expect(await tailOf(name, '-f', '%p %K %k %V %v %h\\n')).toBe(
      '2 1 k 1 v a=1,b=\n2 -1  5 nokey a=1,b=\n2 4 gone -1  a=1,b=\n',
    )
  })

  it('copy a topic to the byte by way of the envelope', async () => {
    const from = await aTopic(2)
    const to = await aTopic(2)
    const input = '{"a": 1}\tkey\n\u00e4\n"text"\nnull\n12345678901234567890\n'
    await millrace(['produce', from, '-H', 'x=1'], { input })
    await millrace(['produce', from, '-p', '1', '--key', 'k'], { input: Uint8Array.of(0xff, 0x0a) })
    const envelopes = await tailOf(from)
    const copied = await millrace(['produce', to, '--json', '--keep-partition'], {
      input: envelopes,
    })
    expect(copied.err).toMatch(/^6 records/)
    const format = '%p:%o %d %k{hex} %v{hex} %h\\n'
    const lines = async (name: string): Promise<string[]> =>
      (await tailOf(name, '-f', format)).split('\n').sort()
    expect(await lines(to)).toEqual(await lines(from))
  })

  it('name the line that cannot be sent, after sending those before it', async () => {
    const name = await aTopic()
    const { code, err } = await millrace(['produce', name, '--json'], {
      input: '{"value":"good"}\n{"valeu":1}\n',
    })
    expect(code).toBe(1)
    expect(err).toContain('line 2: the envelope has an unknown field "valeu"')
    expect(await tailOf(name, '-f', 'raw')).toBe('good\n')
  })

  it('refuse a line that no record can hold, by its number and the limit', async () => {
    const name = await aTopic()
    const { code, err } = await millrace(['produce', name], {
      input: `ok\n${'x'.repeat(3 << 20)}\n`,
    })
    expect(code).toBe(1)
    expect(err).toMatch(/^error: line 2/m)
    expect(err).toContain('hint: `millrace topic alter NAME --set max.message.bytes=')
  })

  it('say at once that the topic is not there', async () => {
    const produced = await millrace(['produce', 'nosuch'], { stdin: new PassThrough() })
    expect(produced.code).toBe(1)
    expect(produced.err).toMatch(/^error: .*nosuch/)
    expect((await millrace(['tail', 'nosuch'])).err).toMatch(/^error: .*nosuch/)
  })

  it('tee the lines, and are quiet when told so', async () => {
    const name = await aTopic()
    const { out, err } = await millrace(['produce', name, '-T', '-q'], { input: 'a\nb' })
    expect(out).toBe('a\nb\n')
    expect(err).toBe('')
  })

  it('end lines with NUL on both sides with -0', async () => {
    const name = await aTopic()
    await millrace(['produce', name, '-0'], { input: 'two\nlines\0one\0' })
    expect(await tailOf(name, '-0', '-f', 'raw')).toBe('two\nlines\0one\0')
    expect(await tailOf(name, '-0', '-f', '%o')).toBe('0\u00001\u0000')
  })

  it.each(['none', 'written', 'durable'])('send with acks %s', async (acks) => {
    const name = await aTopicOf(['a', 'b'], '--acks', acks)
    await vi.waitFor(async () => expect(await tailOf(name, '-f', 'raw')).toBe('a\nb\n'))
  })

  it('send what was read when a signal comes, and say how much', async () => {
    const name = await aTopic()
    const stdin = new PassThrough()
    const io = aFakeIo({ stdin, env: { MILLRACE_SERVER: broker.address } })
    const done = run(['produce', name, '-T'], io)
    stdin.write('a\nb\n')
    await vi.waitFor(() => expect(io.out()).toBe('a\nb\n'))
    io.signals.emit('SIGINT')
    expect(await done).toBe(130)
    await vi.waitFor(() => expect(io.err()).toMatch(/^2 records, /))
    expect(await tailOf(name, '-f', 'raw')).toBe('a\nb\n')
  })
})

describe('group', () => {
  it('is made, described, moved, copied by way of a file, and deleted', async () => {
    const name = await aTopicOf(['a', 'b', 'c', 'd'])
    const make = ['group', 'reset', 'maker', '--topic', name, '--to', '-3', '--create', '--yes']
    expect((await millrace(make)).out).toContain('group maker made: 1 partition\n')
    const described = await millrace(['group', 'describe', 'maker'])
    expect(described.out).toMatch(new RegExp(`^${name} +0 +0 +1 +4 +3 +\\S+ +-$`, 'm'))
    const shifted = await millrace(['group', 'seek', 'maker', '--shift', '1', '--yes'])
    expect(shifted.out).toMatch(new RegExp(`^${name} +0 +1 +2 +\\+1 +2$`, 'm'))
    const { out: file } = await millrace(['group', 'export', 'maker'])
    expect(file).toBe(`{"topic":"${name}","partition":0,"offset":2}\n`)
    const copy = ['group', 'reset', 'taker', '--from-file', '-', '--create', '--yes']
    expect((await millrace(copy, { input: file })).code).toBe(0)
    expect((await millrace(['group', 'export', 'taker'])).out).toBe(file)
    expect((await millrace(['group', 'delete', 'maker', 'taker'])).code).toBe(0)
    const gone = await millrace(['group', 'describe', 'maker'])
    expect(gone.code).toBe(1)
    expect(gone.err).toContain('(UNKNOWN_GROUP)')
  })

  it('is where a plain tail begins with -o group:NAME, which changes nothing', async () => {
    const name = await aTopicOf(['a', 'b', 'c', 'd'])
    await millrace(['group', 'reset', 'g2', '--topic', name, '--to', '2', '--create', '--yes'])
    expect(await tailOf(name, '-o', 'group:g2', '-f', 'raw')).toBe('c\nd\n')
    const left = await millrace(['tail', name, '-o', 'group:g2:3', '-f', 'raw'])
    expect(left.out).toBe('c\n')
    expect(JSON.parse(await tailOf(name, '-o', 'group:g2', '--offsets'))).toMatchObject({ from: 2 })
    const unknown = await millrace(['tail', name, '-o', 'group:g3'])
    expect(unknown.code).toBe(1)
    expect(unknown.err).toContain('(UNKNOWN_GROUP)')
    expect((await millrace(['group', 'export', 'g2'])).out).toContain('"offset":2')
  })
})

describe('tail', () => {
  const ten = Array.from({ length: 10 }, (_, i) => `line ${i}`)
  let name = ''

  beforeAll(async () => {
    name = await aTopicOf(ten)
  })

  it.each([
    [
      ['-o', 'start'],
      [0, 10],
    ],
    [
      ['-o', 'end'],
      [10, 10],
    ],
    [
      ['-o', '7'],
      [7, 10],
    ],
    [
      ['-o', '+2'],
      [2, 10],
    ],
    [
      ['-o', '-3'],
      [7, 10],
    ],
    [
      ['-o', '2:5'],
      [2, 5],
    ],
    [
      ['-o', ':4'],
      [0, 4],
    ],
    [
      ['-o', '-4:end'],
      [6, 10],
    ],
    [
      ['-o', 'start:end'],
      [0, 10],
    ],
    [
      ['-o', '@-1h'],
      [0, 10],
    ],
    [
      ['-o', '@-2h:-1h'],
      [0, 0],
    ],
    [
      ['--since', '1h'],
      [0, 10],
    ],
    [
      ['--since', '1h', '-n', '2'],
      [0, 2],
    ],
    [
      ['--until', '3'],
      [0, 3],
    ],
    [
      ['-o', '5', '--until', 'end'],
      [5, 10],
    ],
    [
      ['-o', 'beginning', '-n', '1'],
      [0, 1],
    ],
    [
      ['-n', '0'],
      [0, 0],
    ],
    [
      ['-p', '0', '-n', '4'],
      [0, 4],
    ],
  ])('%j shows the records %j', async (argv, [from, to]) => {
    const expected = ten.slice(from, to).map((line) => `${line}\n`)
    expect(await tailOf(name, ...argv, '-f', 'raw')).toBe(expected.join(''))
  })

  it('stops at the end of a range without --no-follow', async () => {
    const { code, out } = await millrace(['tail', name, '-o', '8:end', '-f', 'raw'])
    expect(code).toBe(0)
    expect(out).toBe('line 8\nline 9\n')
  })

  it('says which offsets there are when one is asked for that is not there', async () => {
    const { code, err } = await millrace(['tail', name, '-o', '99', '--no-follow'])
    expect(code).toBe(1)
    expect(err).toMatch(/^error: .*99/)
    expect(err).toContain('hint: `millrace tail TOPIC --offsets`')
  })

  it('filters by pattern, key and header, and counts only what it shows', async () => {
    expect(await tailOf(name, '--grep', 'ne [3-5]', '-f', 'raw')).toBe('line 3\nline 4\nline 5\n')
    expect(await tailOf(name, '--grep', 'LINE', '-i', '-n', '1', '-f', 'raw')).toBe('line 0\n')
    const other = await aTopic()
    await millrace(['produce', other, '-k', '='], { input: 'a=1\nb=2\n' })
    await millrace(['produce', other, '--key', 'a', '-H', 'x=1'], { input: '3\n' })
    expect(await tailOf(other, '--key', 'a', '-f', 'raw')).toBe('1\n3\n')
    expect(await tailOf(other, '--header', 'x=1', '-f', 'raw')).toBe('3\n')
  })

  it('prints JSON lines by default, and one line for people on a terminal', async () => {
    const lines = (await tailOf(name, '-n', '2')).trimEnd().split('\n')
    expect(lines.map((line) => JSON.parse(line) as unknown)).toMatchObject([
      { topic: name, partition: 0, offset: 0, value: 'line 0' },
      { topic: name, partition: 0, offset: 1, value: 'line 1' },
    ])
    const people = await millrace(['tail', name, '-n', '1'], {
      terminal: true,
      env: { NO_COLOR: '1' },
    })
    expect(people.out).toMatch(new RegExp(`^\\S+Z {2}${name}/0:0 {2}line 0\\n$`))
    expect(await tailOf(name, '-n', '1', '-f', 'table')).toMatch(/^PLACE .*\n.* line 0\n$/)
  })

  it('shows offsets instead of records with --offsets', async () => {
    const out = await tailOf(name, '--offsets', '-o', '-3')
    expect(JSON.parse(out)).toEqual({
      topic: name,
      partition: 0,
      start: 0,
      end: 10,
      from: 7,
      until: 10,
    })
  })

  it('reads several topics, and those that match with --regex', async () => {
    const other = await aTopicOf(['other'])
    const out = await tailOf(name, other, '-f', '%t\\n')
    expect(out.trimEnd().split('\n').sort()).toEqual([...ten.map(() => name), other].sort())
    expect(await tailOf('--regex', `^${other}$`, '-f', 'raw')).toBe('other\n')
    expect((await millrace(['tail', '--regex', '^none$'])).code).toBe(2)
  })

  it('follows until a signal, prints the count and ends with 130', async () => {
    const live = await aTopic(2)
    const io = aFakeIo({ env: { MILLRACE_SERVER: broker.address } })
    const done = run(['tail', live, '-f', 'raw'], io)
    await millrace(['produce', live], { input: 'a\n' })
    await vi.waitFor(() => expect(io.out()).toBe('a\n'))
    await millrace(['produce', live], { input: 'b\n' })
    await vi.waitFor(() => expect(io.out()).toBe('a\nb\n'))
    io.signals.emit('SIGINT')
    expect(await done).toBe(130)
    await vi.waitFor(() => expect(io.err()).toBe('2 records\n'))
    expect(io.signals.listenerCount('SIGINT')).toBe(0)
  })

  it('ends at once on a second signal', async () => {
    const io = aFakeIo({ env: { MILLRACE_SERVER: broker.address } })
    const done = run(['tail', name, '-o', 'end'], io)
    await vi.waitFor(() => expect(io.signals.listenerCount('SIGTERM')).toBe(1))
    io.signals.emit('SIGTERM')
    io.signals.emit('SIGTERM')
    expect(io.exits).toEqual([143])
    expect(await done).toBe(143)
  })

  it('ends quietly with 0 when its reader leaves', async () => {
    const live = await aTopicOf(['a'])
    const io = aFakeIo({ env: { MILLRACE_SERVER: broker.address } })
    const done = run(['tail', live, '-f', 'raw'], io)
    await vi.waitFor(() => expect(io.out()).toBe('a\n'))
    io.stdout.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
    expect(await done).toBe(0)
    expect(io.err()).toBe('')
  })

  it('finds topics with --pattern in place of names', async () => {
    const other = await aTopicOf(['by pattern'])
    expect(await tailOf('--pattern', `^${other}$`, '-f', 'raw')).toBe('by pattern\n')
    const { code, err } = await millrace(['tail', '--pattern', '^none$'])
    expect(code).toBe(2)
    expect(err).toContain('no topic matches ^none$')
  })

  it('ends when nothing has come for --idle', async () => {
    const { code, out } = await millrace(['tail', name, '--idle', '100ms', '-f', 'raw', '-o', '-1'])
    expect(code).toBe(0)
    expect(out).toBe('line 9\n')
  })

  it('runs a command for each record, and stops at one that fails', async () => {
    const shown = await millrace([
      'tail',
      name,
      '-n',
      '2',
      '--exec',
      'echo "$MILLRACE_OFFSET:$(cat)" | tr a-z A-Z',
    ])
    expect(shown.out).toBe('0:LINE 0\n1:LINE 1\n')
    const failed = await millrace(['tail', name, '--exec', 'test "$MILLRACE_OFFSET" != 1'])
    expect(failed.code).toBe(1)
    expect(failed.err).toContain(`error: the command ended with code 1 at ${name}/0:1`)
    expect(failed.err).toContain('hint: -o 1 starts again')
  })
})
