import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { Command, Server, runTo } from '../support/cli-process.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

const data = { path: '' }
let server: Server
let made = 0
const SLOW = { timeout: 20_000, interval: 20 }

beforeAll(async () => {
  data.path = mkdtempSync(join(tmpdir(), 'millrace-queues-'))
  server = await Server.start(data.path)
})

afterAll(async () => {
  await server.kill('SIGTERM')
  rmSync(data.path, { recursive: true, force: true })
})

/** A topic for jobs with so many records, each with its own number as value, and a name for a group. */
async function aQueue(
  records: number,
  partitions = 1,
): Promise<{ readonly topic: string; readonly group: string }> {
  const topic = `jobs-${++made}`
  const created = await run('topic', 'create', topic, '-p', `${partitions}`, '-c', 'jobs=true')
  expect(created.err).toBe('')
  const lines = Array.from({ length: records }, (_, i) => `${i}\n`).join('')
  if (records > 0) await runTo(server, ['produce', topic], lines)
  return { topic, group: `group-${made}` }
}

/** Runs to its end, successfully. */
async function run(...argv: readonly string[]): Promise<Command> {
  const command = await runTo(server, argv)
  const code = await command.code()
  expect(code, `${argv.join(' ')}: ${command.err}`).toBe(0)
  return command
}

async function facts<T = Record<string, unknown>>(...argv: readonly string[]): Promise<T> {
  return JSON.parse((await run(...argv, '--format', 'json')).out.toString()) as T
}

async function rows(...argv: readonly string[]): Promise<readonly Record<string, unknown>[]> {
  const { lines } = await run(...argv, '--format', 'json')
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>)
}

/** One that goes on until the test ends it. */
function aWorker(...argv: readonly string[]): Command {
  const worker = new Command(['work', ...argv], { MILLRACE_SERVER: server.address })
  onTestFinished(() => {
    worker.child.kill('SIGKILL')
  })
  return worker
}

interface Totals {
  readonly totals: { readonly ready: number; readonly acquired: number; readonly parked: number }
}

describe('work', () => {
  it('prints what is there, accepts it, and leaves nothing for the next one', async () => {
    const { topic, group } = await aQueue(500, 3)
    const first = await run('work', topic, '-g', group, '--drain', '-f', 'raw')
    expect([...first.lines].map(Number).sort((a, b) => a - b)).toEqual([...Array(500).keys()])
    const second = await run('work', topic, '-g', group, '--drain', '-f', 'raw')
    expect(second.lines).toEqual([])
    // It is a log: another group sees all of it again.
    const other = await run('work', topic, '-g', `${group}-b`, '--drain', '-f', 'raw')
    expect(other.lines).toHaveLength(500)
  })

  it('with -n takes just as many, time after time', async () => {
    const { topic, group } = await aQueue(50)
    const seen: string[] = []
    for (const count of [7, 0, 1, 42]) {
      const { lines } = await run('work', topic, '-g', group, '-f', 'raw', '-n', `${count}`)
      expect(lines).toHaveLength(count)
      seen.push(...lines)
    }
    expect(seen.map(Number).sort((a, b) => a - b)).toEqual([...Array(50).keys()])
  })

  it('ends with 130 on SIGINT, having accepted what it printed', async () => {
    const { topic, group } = await aQueue(10)
    const worker = aWorker(topic, '-g', group, '-f', 'raw')
    await vi.waitFor(() => expect(worker.lines).toHaveLength(10), SLOW)
    worker.child.kill('SIGINT')
    expect(await worker.code()).toBe(130)
    expect(worker.err).toBe('10 records\n')
    expect((await run('work', topic, '-g', group, '--drain', '-f', 'raw')).lines).toEqual([])
  })

  it('runs a command for each: 0 accepts, 75 tries again, others are dead letters with what they said', async () => {
    const { topic, group } = await aQueue(4)
    const folder = temporaryDirectory()
    // 1 is tried again, and is through the third time; 2 is rejected; 3 is never done.
    const exec = `n=$(cat); echo "$n $MILLRACE_DELIVERY_COUNT" >> ${folder}/tries
      case $n in 1) [ $MILLRACE_DELIVERY_COUNT = 3 ] || exit 75;; 2) echo bad input >&2; exit 2;; 3) exit 75;; esac`
    const worker = await run(
      'work',
      topic,
      '-g',
      group,
      '--exec',
      exec,
      '--concurrency',
      '2',
      '--attempts',
      '3',
      '--backoff',
      'fixed:20ms',
      '--idle',
      '2s',
    )
    const tries = readFileSync(join(folder, 'tries'), 'utf8').trim().split('\n').sort()
    expect(tries).toEqual(['0 1', '1 1', '1 2', '1 3', '2 1', '3 1', '3 2', '3 3'])
    expect(worker.err).toContain(`${topic}/0:2: bad input\n`)
    expect(worker.err).toMatch(/\n8 records: 2 done, 5 to be tried again, 1 rejected\n$/)
    const letters = await rows('queue', 'dead', 'list', group, topic)
    expect(
      letters.map(({ sourceOffset, reason, failures }) => ({ sourceOffset, reason, failures })),
    ).toEqual([
      { sourceOffset: 2, reason: 'rejected', failures: 1 },
      { sourceOffset: 3, reason: 'attempts_exhausted', failures: 3 },
    ])
    expect(letters[0]).toMatchObject({ error: { type: 'ExitCode2', message: 'bad input' } })
  })

  it('stops and rejects nothing when the command is not there', async () => {
    const { topic, group } = await aQueue(3)
    const worker = await runTo(server, ['work', topic, '-g', group, '--exec', 'no-such-thing'])
    expect(await worker.code()).toBe(1)
    expect(worker.err).toContain('error: the command cannot be run: it was not found (code 127)')
    const { totals } = await facts<Totals>('queue', 'describe', group)
    expect(totals).toMatchObject({ ready: 3, acquired: 0, parked: 0 })
  })

  it('shares one partition between workers, and goes on with what a killed one had', async () => {
    const { topic, group } = await aQueue(2)
    const folder = temporaryDirectory()
    const exec = `echo $$ > ${folder}/$MILLRACE_OFFSET-$MILLRACE_DELIVERY_COUNT; [ $MILLRACE_DELIVERY_COUNT = 1 ] && exec sleep 60; exit 0`
    const options = ['-g', group, '--exec', exec, '--lease', '1s', '--backoff', 'none'] as const
    const victims = [aWorker(topic, ...options), aWorker(topic, ...options)]
    const pidOf = (name: string): number => Number(readFileSync(join(folder, name), 'utf8'))
    await vi.waitFor(() => expect(pidOf('0-1') + pidOf('1-1')).toBeGreaterThan(0), SLOW)
    onTestFinished(() => {
      for (const name of ['0-1', '1-1']) process.kill(-pidOf(name), 'SIGKILL')
    })
    for (const victim of victims) victim.child.kill('SIGKILL')
    const next = await run('work', topic, ...options, '-n', '2')
    expect(next.err).toBe('2 records\n')
    expect(pidOf('0-2') + pidOf('1-2')).toBeGreaterThan(0)
  })

  it('says who is meant when the group is a stream group, or the topic is not there', async () => {
    const { topic } = await aQueue(1)
    await run('tail', topic, '-g', `stream-${topic}`, '-n', '1')
    const mismatch = await runTo(server, ['work', topic, '-g', `stream-${topic}`])
    expect(await mismatch.code()).toBe(1)
    expect(mismatch.err).toContain('(GROUP_TYPE_MISMATCH)\nhint: ')
    const unknown = await runTo(server, ['work', `${topic}x`, '-g', 'g'])
    expect(await unknown.code()).toBe(1)
    expect(unknown.err).toContain('(UNKNOWN_TOPIC)\nhint: ')
  })
})

describe('queue send', () => {
  it('says where each line is, in order, and recognizes what was sent before', async () => {
    const { topic } = await aQueue(0)
    const sent = await runTo(server, ['queue', 'send', topic, '-k', '\\t'], 'k\ta\nk\tb\n')
    expect(sent.err).toBe('')
    expect(sent.lines).toEqual([`${topic}/0:0`, `${topic}/0:1`])
    for (const duplicate of [false, true]) {
      const receipt = await facts('queue', 'send', topic, '-v', 'c', '--dedupe-id', 'c-1')
      expect(receipt).toMatchObject({ topic, partition: 0, offset: 2, duplicate })
    }
    const two = await runTo(server, ['queue', 'send', topic, '--dedupe-id', 'd'], 'x\ny\n')
    expect(await two.code()).toBe(2)
    expect(two.lines).toEqual([`${topic}/0:3`])
    expect(two.err).toContain('there is a second line')
  })

  it('puts what workers go by into headers', async () => {
    const { topic, group } = await aQueue(0)
    await run(
      'queue',
      'send',
      topic,
      '-v',
      'x',
      '--type',
      'mail',
      '--ordering-key',
      'c-7',
      '--attempts',
      '1',
      '--backoff',
      'list:1s,1m',
      '-H',
      'a=b',
    )
    const [record] = await rows('tail', topic, '--no-follow')
    const headers = record?.['headers'] as readonly { key: string; value: string }[]
    expect(Object.fromEntries(headers.map(({ key, value }) => [key, value]))).toEqual({
      a: 'b',
      'job.type': 'mail',
      'job.ordering_key': 'c-7',
      'job.attempts_max': '1',
      'job.backoff': 'list:1s,1m',
    })
    const exec = 'echo "$MILLRACE_TYPE"; exit 75'
    const worker = await run('work', topic, '-g', group, '--exec', exec, '-n', '1')
    expect(worker.lines).toEqual(['mail'])
    await vi.waitFor(async () => {
      // Its own single attempt is used up.
      expect(await rows('queue', 'dead', 'list', group, topic)).toMatchObject([
        { reason: 'attempts_exhausted', failures: 1 },
      ])
    }, SLOW)
  })

  it('keeps what is to come later: list, count, move, fire, cancel', async () => {
    const { topic, group } = await aQueue(0)
    const worker = aWorker(topic, '-g', group, '-f', '%v\\n')
    const send = async (value: string, ...when: readonly string[]): Promise<string> => {
      const receipt = await facts('queue', 'send', topic, '-v', value, ...when)
      expect(receipt).toMatchObject({ topic, duplicate: false })
      expect(receipt).not.toHaveProperty('offset')
      return String(receipt['delayId'])
    }
    const soon = Date.now() + 500
    await send('soon', '--delay', '500ms')
    const cancelled = await send('cancelled', '--delay', '1h')
    const moved = await send('moved', '--delay', '2h')
    const fired = await send('fired', '--at', new Date(Date.now() + 3_600_000).toISOString())
    expect(await facts('queue', 'delayed', 'count', topic)).toMatchObject({ topic })
    await run('queue', 'delayed', 'cancel', cancelled)
    await run('queue', 'delayed', 'fire', fired)
    await run('queue', 'delayed', 'move', moved, '--delay', '3h')
    await vi.waitFor(() => expect([...worker.lines].sort()).toEqual(['fired', 'soon']), SLOW)
    expect(Date.now()).toBeGreaterThanOrEqual(soon)
    const left = await rows('queue', 'delayed', 'list', topic)
    expect(left).toMatchObject([{ delayId: moved, topic, record: { value: 'moved' } }])
    expect(Number(left[0]?.['deliverAt'])).toBeGreaterThan(Date.now() + 2.9 * 3_600_000)
    const again = await runTo(server, ['queue', 'delayed', 'cancel', cancelled])
    expect(await again.code()).toBe(1)
    expect(again.err).toContain('(ALREADY_FIRED)')
    const never = await runTo(server, ['queue', 'delayed', 'cancel', 'abc'])
    expect(never.err).toContain('(DELAY_NOT_FOUND)\nhint: ')
    const late = await runTo(server, ['queue', 'delayed', 'fire', fired])
    expect(late.err).toContain('(ALREADY_FIRED)\nhint: ')
    const far = await runTo(server, ['queue', 'send', topic, '-v', 'x', '--delay', '500d'])
    expect(await far.code()).toBe(1)
    expect(far.err).toContain('(DELAY_TOO_LONG)\nhint: ')
  })
})

describe('looking after a queue', () => {
  it('describes, explains, peeks, pauses, resumes and configures', async () => {
    const { topic, group } = await aQueue(5)
    await run('work', topic, '-g', group, '-n', '1')
    await run('work', topic, '-g', group, '-n', '1', '--exec', 'exit 75', '--backoff', 'fixed:1h')
    expect(await facts<Totals>('queue', 'describe', group)).toMatchObject({
      group,
      totals: { ready: 3, acquired: 0, parked: 1 },
      topics: [{ topic, deadLetterTopic: `dlq.${group}.${topic}` }],
    })
    const states: string[] = []
    for (let offset = 0; offset < 5; offset++) {
      const { state } = await facts('queue', 'explain', group, topic, `0:${offset}`)
      states.push(String(state))
    }
    expect(states.slice(0, 2)).toEqual(['done', 'parked'])
    expect(await facts('queue', 'explain', group, `${topic}/0:1`)).toMatchObject({
      failureCount: 1,
      failures: [{ type: 'ExitCode75', kind: 'retry' }],
    })
    const peeked = await rows('queue', 'peek', group, topic, '--state', 'parked')
    expect(peeked).toMatchObject([{ state: 'parked', record: { topic, offset: 1, value: 1 } }])

    await run('queue', 'pause', group, '--for', '1h')
    expect(await facts('queue', 'describe', group)).toMatchObject({ paused: true })
    const paused = await run('work', topic, '-g', group, '--idle', '500ms', '-f', 'raw')
    expect(paused.lines).toEqual([])
    await run('queue', 'resume', group)
    expect((await run('work', topic, '-g', group, '-n', '3', '-f', 'raw')).lines).toHaveLength(3)

    await run('queue', 'config', group, '--set', 'retry.max.attempts=9', '--set', 'order=key')
    const { config } = await facts<{ config: readonly Record<string, unknown>[] }>(
      'queue',
      'config',
      group,
    )
    expect(config.find(({ name }) => name === 'retry.max.attempts')).toMatchObject({
      value: '9',
      overridden: true,
    })
    await run('queue', 'config', group, '--clear', 'order')
    const bad = await runTo(server, ['queue', 'config', group, '--set', 'retry.max.attempt=9'])
    expect(await bad.code()).toBe(1)
    expect(bad.err).toContain('(INVALID_CONFIG)\nhint: ')
    const list = await facts<{ groups: readonly { group: string }[] }>('queue', 'list')
    expect(list.groups.map((row) => row.group)).toContain(group)
    // Tables, too.
    const { out } = await run('queue', 'describe', group, '--config')
    expect(out.toString()).toMatch(/^retry\.max\.attempts +9 +the group's /m)
  })

  it('redrives dead letters to their group and to no other, and discards what is left', async () => {
    const { topic, group } = await aQueue(6)
    await run('work', topic, '-g', group, '--exec', 'exit 1', '--drain', '-q')
    await run('work', topic, '-g', 'others', '--drain')
    const letters = await vi.waitFor(async () => {
      const found = await rows('queue', 'dead', 'list', group, topic)
      expect(found).toHaveLength(6)
      return found
    }, SLOW)
    const shown = await run(
      'queue',
      'dead',
      'show',
      group,
      topic,
      `0:${Number(letters[0]?.['offset'])}`,
    )
    expect(shown.out.toString()).toMatch(/^reason {4}rejected$/m)

    const plan = await facts('queue', 'redrive', group, topic, '--dry-run', '-n', '2')
    expect(plan).toMatchObject({ dryRun: true, task: null, preview: { count: 2 } })
    const nobody = await runTo(server, ['queue', 'redrive', group, topic])
    expect(await nobody.code()).toBe(2)
    expect(nobody.err).toContain('nothing was changed')

    const moved = await run('queue', 'redrive', group, topic, '-n', '4', '--yes')
    expect(moved.out.toString()).toMatch(/\n4 dead letters moved\n$/)
    const again = await run('work', topic, '-g', group, '-n', '4', '-f', '%t/%p:%o\\n')
    expect([...again.lines].sort()).toEqual([0, 1, 2, 3].map((offset) => `${topic}/0:${offset}`))
    expect((await run('work', topic, '-g', 'others', '--drain')).lines).toEqual([])
    const tasks = await facts<{ redrives: readonly object[] }>('queue', 'redrive', 'list')
    expect(tasks.redrives).toContainEqual(expect.objectContaining({ state: 'done', moved: 4 }))

    expect(await facts('queue', 'dead', 'discard', group, topic, '--yes')).toMatchObject({
      discarded: 2,
    })
    expect(await rows('queue', 'dead', 'list', group, topic)).toEqual([])
    expect(await rows('queue', 'dead', 'list', group, topic, '--all')).toHaveLength(6)
  })

  it('lets a redrive go on without it, and cancels one', async () => {
    const { topic, group } = await aQueue(20)
    await run('work', topic, '-g', group, '--exec', 'exit 1', '--concurrency', '8', '--drain', '-q')
    const slow = ['queue', 'redrive', group, topic, '--rate', '1', '--yes'] as const
    const redrive = new Command(slow, { MILLRACE_SERVER: server.address })
    await vi.waitFor(() => expect(redrive.lines.length).toBeGreaterThan(10), SLOW)
    await vi.waitFor(async () => {
      const { redrives } = await facts<{ redrives: readonly { state: string }[] }>(
        'queue',
        'redrive',
        'list',
      )
      expect(redrives.some(({ state }) => state === 'running')).toBe(true)
    }, SLOW)
    redrive.child.kill('SIGINT')
    expect(await redrive.code()).toBe(130)
    const id = /redrive cancel (\S+)`/.exec(redrive.err)?.[1] ?? ''
    const second = await runTo(server, slow)
    expect(second.err).toContain('(REDRIVE_IN_PROGRESS)\nhint: ')
    const cancelled = await facts('queue', 'redrive', 'cancel', id)
    expect(cancelled).toMatchObject({ taskId: id, state: 'cancelled' })
  })
})
