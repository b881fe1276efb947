import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Command, Server, runTo } from '../support/cli-process.ts'

const data = { path: '' }
let server: Server
let made = 0

/** Short sessions, so that a kill is noticed soon. */
const ENVIRONMENT = {
  MILLRACE_GROUP_MIN_SESSION_TIMEOUT: '1s',
  MILLRACE_GROUP_SESSION_TIMEOUT: '2s',
  MILLRACE_GROUP_REBALANCE_INTERVAL: '100ms',
}
const SLOW = { timeout: 20_000, interval: 20 }

beforeAll(async () => {
  data.path = mkdtempSync(join(tmpdir(), 'millrace-groups-'))
  server = await Server.start(data.path, '127.0.0.1:0', ENVIRONMENT)
})

afterAll(async () => {
  await server.kill('SIGTERM')
  rmSync(data.path, { recursive: true, force: true })
})

/** A topic with as many records in each partition, each with its own number as value. */
async function aTopic(partitions: number, recordsInEach: number): Promise<string> {
  const name = `topic-${++made}`
  await runTo(server, ['topic', 'create', name, '-p', String(partitions)])
  if (recordsInEach > 0) await fill(name, partitions, 0, recordsInEach)
  return name
}

async function fill(name: string, partitions: number, from: number, until: number): Promise<void> {
  const lines: string[] = []
  for (let partition = 0; partition < partitions; partition++) {
    for (let i = from; i < until; i++) {
      lines.push(`{"topic":"t","partition":${partition},"value":"${partition}:${i}"}\n`)
    }
  }
  const sent = await runTo(server, ['produce', name, '--json', '--keep-partition'], lines.join(''))
  expect(await sent.code()).toBe(0)
}

function everything(partitions: number, recordsInEach: number): readonly string[] {
  return Array.from({ length: partitions * recordsInEach }, (_, i) =>
    [Math.floor(i / recordsInEach), i % recordsInEach].join(':'),
  ).sort()
}

/** A member that goes on until the test ends it. */
function aMember(name: string, group: string, ...more: readonly string[]): Command {
  const member = new Command(['tail', name, '-g', group, '-f', 'raw', ...more], {
    MILLRACE_SERVER: server.address,
  })
  onTestFinished(() => {
    member.child.kill('SIGKILL')
  })
  return member
}

function valuesOf(...members: readonly Command[]): readonly string[] {
  return members.flatMap((member) => member.lines)
}

async function describeGroup(group: string): Promise<{
  readonly lag: number
  readonly state: string
  readonly members: readonly { readonly owned: readonly object[] }[]
}> {
  const { out } = await runTo(server, ['group', 'describe', group, '--format', 'json'])
  return JSON.parse(out.toString()) as Awaited<ReturnType<typeof describeGroup>>
}

/** Waits until each member owns that many partitions, the largest share first. */
async function shares(group: string, ...expected: readonly number[]): Promise<void> {
  await vi.waitFor(async () => {
    const { members, state } = await describeGroup(group)
    const owned = members.map((member) => member.owned.length).sort((a, b) => b - a)
    expect(owned).toEqual(expected)
    expect(state).toBe('stable')
  }, SLOW)
}

describe('tail -g', () => {
  it('commits on SIGINT, counts, ends with 130, and the next one goes on there', async () => {
    const name = await aTopic(3, 100)
    const first = aMember(name, 'resume')
    await vi.waitFor(() => expect(first.lines).toHaveLength(300), SLOW)
    first.child.kill('SIGINT')
    expect(await first.code()).toBe(130)
    expect(first.err).toBe('300 records\n')
    await fill(name, 3, 100, 110)
    const next = await runTo(server, ['tail', name, '-g', 'resume', '-f', 'raw', '--no-follow'])
    expect(await next.code()).toBe(0)
    expect(next.err).toBe('')
    expect(next.lines).toHaveLength(30)
    expect([...valuesOf(first, next)].sort()).toEqual(everything(3, 110))
  })

  it('with -n takes just as many, time after time', async () => {
    const name = await aTopic(2, 25)
    const rounds: Command[] = []
    for (const count of [7, 0, 1, 42]) {
      const round = await runTo(server, ['tail', name, '-g', 'few', '-f', 'raw', '-n', `${count}`])
      expect(await round.code()).toBe(0)
      expect(round.lines).toHaveLength(count)
      rounds.push(round)
    }
    expect([...valuesOf(...rounds)].sort()).toEqual(everything(2, 25))
    expect((await describeGroup('few')).lag).toBe(0)
  })

  it('shares the partitions, and takes over those of a member that is killed', async () => {
    const name = await aTopic(6, 20)
    const left = aMember(name, 'shared')
    await shares('shared', 6)
    const right = aMember(name, 'shared')
    await shares('shared', 3, 3)
    await fill(name, 6, 20, 40)
    await vi.waitFor(() => expect(new Set(valuesOf(left, right)).size).toBe(240), SLOW)
    right.child.kill('SIGKILL')
    await right.ended
    await fill(name, 6, 40, 60)
    await vi.waitFor(() => expect(new Set(valuesOf(left, right)).size).toBe(360), SLOW)
    await shares('shared', 6)
    left.child.kill('SIGTERM')
    expect(await left.code()).toBe(143)
    expect([...new Set(valuesOf(left, right))].sort()).toEqual(everything(6, 60))
    expect(await describeGroup('shared')).toMatchObject({ state: 'empty', lag: 0 })
  })

  it('ends with 0 when its reader leaves, and loses nothing that was not read', async () => {
    // Far more than a pipe holds.
    const lines = Array.from({ length: 60_000 }, (_, i) => `${i} ${'x'.repeat(94)}\n`)
    const name = await aTopic(1, 0)
    await runTo(server, ['produce', name], lines.join(''))
    const first = aMember(name, 'head')
    await once(first.child.stdout, 'data')
    first.child.stdout.destroy()
    expect(await first.code()).toBe(0)
    expect(first.err).toBe('')
    const rest = await runTo(server, ['tail', name, '-g', 'head', '-f', 'raw', '--no-follow'])
    // It begins where what was taken ends, or before: what was read, and what the pipe held.
    const committed = lines.length - rest.lines.length
    const bytes = lines.slice(0, committed).join('').length
    expect(bytes).toBeLessThanOrEqual(first.out.length + (1 << 20))
    expect(rest.out.toString()).toBe(lines.slice(committed).join(''))
  })

  it('--exec commits up to the command that fails, and goes on there', async () => {
    const name = await aTopic(1, 6)
    const argv = ['tail', name, '-g', 'jobs', '--idle', '1s', '--exec']
    const failed = await runTo(server, [...argv, 'read -r v || true; echo "$v"; test "$v" != 0:3'])
    expect(await failed.code()).toBe(1)
    expect(failed.lines).toEqual(['0:0', '0:1', '0:2', '0:3'])
    expect(failed.err).toContain(`the command ended with code 1 at ${name}/0:3`)
    const rest = await runTo(server, [...argv, 'cat; echo'])
    expect(await rest.code()).toBe(0)
    expect(rest.lines).toEqual(['0:3', '0:4', '0:5'])
  })

  it('--commit manual only looks', async () => {
    const name = await aTopic(1, 5)
    for (let i = 0; i < 2; i++) {
      const look = await runTo(server, [
        'tail',
        name,
        '-g',
        'look',
        '-f',
        'raw',
        '--no-follow',
        '--commit',
        'manual',
      ])
      expect(look.lines).toHaveLength(5)
    }
  })

  it('-o says where to begin only where nothing is committed, and says so', async () => {
    const name = await aTopic(1, 10)
    const argv = ['tail', name, '-g', 'begin', '-f', 'raw', '--no-follow', '-o']
    const first = await runTo(server, [...argv, '-2'])
    expect(first.lines).toEqual(['0:8', '0:9'])
    expect(first.err).toBe('')
    const next = await runTo(server, [...argv, 'start'])
    expect(next.lines).toEqual([])
    expect(next.err).toMatch(/^note: begin has committed offsets and goes on there; start counts/)
    const strict = ['tail', name, '-g', 'strict', '--no-follow', '--from', 'none']
    const refused = await runTo(server, strict)
    expect(await refused.code()).toBe(1)
    expect(refused.err).toContain('(OFFSET_OUT_OF_RANGE)')
  })

  it('tells both offsets when retention was faster, and goes on where --on-lost says', async () => {
    const name = await aTopic(1, 10)
    const argv = ['tail', name, '-g', 'late', '-f', 'raw', '--no-follow']
    expect((await runTo(server, [...argv, '-n', '2'])).lines).toEqual(['0:0', '0:1'])
    await runTo(server, ['topic', 'delete-records', name, '--before', '6'])
    const described = await runTo(server, ['group', 'describe', 'late', '--offsets'])
    expect(described.out.toString()).toMatch(new RegExp(`^${name} +0 +6 +2 lost +10 `, 'm'))
    const failed = await runTo(server, argv)
    expect(await failed.code()).toBe(1)
    expect(failed.err).toMatch(/^error: .*\b2\b.*\b6\b/)
    expect(failed.err).toContain('hint: --on-lost start')
    const going = await runTo(server, [...argv, '--on-lost', 'start'])
    expect(going.lines).toEqual(['0:6', '0:7', '0:8', '0:9'])
    expect(going.err).toContain(`late: ${name}/0 goes on at 6: offset 2 is outside [6, 10]`)
  })

  it('reads topics by pattern, also those that come later', async () => {
    const member = new Command(
      ['tail', '-g', 'audit', '--pattern', '^audited-', '-f', '%t %v\\n'],
      { MILLRACE_SERVER: server.address },
    )
    onTestFinished(() => {
      member.child.kill('SIGKILL')
    })
    for (const name of ['audited-one', 'audited-two']) {
      await runTo(server, ['topic', 'create', name])
      await runTo(server, ['produce', name], 'x\n')
      await vi.waitFor(() => expect(member.lines).toContain(`${name} x`), SLOW)
    }
    member.child.kill('SIGINT')
    expect(await member.code()).toBe(130)
  })

  it('refuses a topic that is not there, and an instance id that is in use', async () => {
    const unknown = await runTo(server, ['tail', 'nosuch', '-g', 'x'])
    expect(await unknown.code()).toBe(1)
    expect(unknown.err).toContain('(UNKNOWN_TOPIC)')
    const name = await aTopic(1, 1)
    aMember(name, 'static', '--instance-id', 'one')
    await shares('static', 1)
    const second = await runTo(server, ['tail', name, '-g', 'static', '--instance-id', 'one'])
    expect(await second.code()).toBe(1)
    expect(second.err).toContain('(INSTANCE_ID_IN_USE)')
    expect(second.err).toContain('hint: another process reads with this --instance-id')
  })

  it('follows through a restart of the broker after kill -9', async () => {
    const name = await aTopic(2, 50)
    const member = aMember(name, 'steady', '--session-timeout', '30s')
    await vi.waitFor(() => expect(member.lines).toHaveLength(100), SLOW)
    const { address } = server
    await server.kill('SIGKILL')
    server = await Server.start(data.path, address, ENVIRONMENT)
    await fill(name, 2, 50, 60)
    await vi.waitFor(() => expect(new Set(member.lines).size).toBe(120), SLOW)
    member.child.kill('SIGINT')
    expect(await member.code()).toBe(130)
    expect([...new Set(member.lines)].sort()).toEqual(everything(2, 60))
    expect((await describeGroup('steady')).lag).toBe(0)
  })
})

describe('group reset', () => {
  it('is refused with names while somebody reads, and moves the group afterwards', async () => {
    const name = await aTopic(2, 10)
    const member = aMember(name, 'moved')
    await vi.waitFor(() => expect(member.lines).toHaveLength(20), SLOW)
    const reset = ['group', 'reset', 'moved', '--to', 'start']
    const refused = await runTo(server, [...reset, '--yes'])
    expect(await refused.code()).toBe(1)
    expect(refused.err).toContain('(GROUP_NOT_EMPTY)')
    expect(refused.err).toContain('millrace-tail at 127.0.0.1:')
    expect(refused.err).toContain(`(${name}/0-1)`)
    member.child.kill('SIGINT')
    await member.ended
    const dry = await runTo(server, [...reset, '--dry-run'])
    expect(await dry.code()).toBe(0)
    expect(dry.out.toString()).toMatch(new RegExp(`^${name} +1 +10 +0 +-10 +10$`, 'm'))
    const unasked = await runTo(server, reset)
    expect(await unasked.code()).toBe(2)
    expect((await describeGroup('moved')).lag).toBe(0)
    expect(await (await runTo(server, [...reset, '--yes'])).code()).toBe(0)
    expect((await describeGroup('moved')).lag).toBe(20)
    const again = await runTo(server, ['tail', name, '-g', 'moved', '-f', 'raw', '--no-follow'])
    expect([...again.lines].sort()).toEqual(everything(2, 10))
  })
})
