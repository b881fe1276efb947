import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Writable } from 'node:stream'
import { describe, expect, it, vi } from 'vitest'
import { FakeWorkQueue } from './fake-worker.ts'
import type { FakeJobShape } from './fake-worker.ts'
import { reportError } from '../../src/cli/report-error.ts'
import { compileWorkOutput, performWork, workerOptions } from '../../src/cli/work.ts'
import type { WorkOptions } from '../../src/cli/work.ts'
import { Output } from '../../src/cli/output.ts'
import { WorkCommand } from '../../src/cli/work-command.ts'
import { MillraceError, bytes } from '../../src/client/index.ts'
import { aFakeIo } from '../support/cli-io.ts'
import type { FakeIo } from '../support/cli-io.ts'
import { temporaryDirectory } from '../support/temporary-directory.ts'

const plain: WorkOptions = {
  group: 'g',
  null: false,
  metaOnly: false,
  concurrency: 1,
  drain: true,
  quiet: false,
  set: [],
}

const environment = { PATH: process.env['PATH'] ?? '' }

interface Run {
  readonly io: FakeIo
  readonly queue: FakeWorkQueue
  readonly code: Promise<number>
}

function start(
  jobs: readonly (string | FakeJobShape)[] | FakeWorkQueue,
  options: Partial<WorkOptions>,
  env: Readonly<Record<string, string>> = {},
): Run {
  const io = aFakeIo({ env: { ...environment, ...env } })
  const queue = jobs instanceof FakeWorkQueue ? jobs : new FakeWorkQueue(jobs)
  const all = { ...plain, ...options }
  const code = performWork(
    io,
    queue,
    'jobs',
    workerOptions(all),
    compileWorkOutput(io, all),
    all,
  ).catch((error: unknown) => reportError(io, error))
  return { io, queue, code }
}

interface Done {
  readonly code: number
  readonly out: string
  readonly err: string
  readonly queue: FakeWorkQueue
}

async function workTo(...parameters: Parameters<typeof start>): Promise<Done> {
  const { io, queue, code } = start(...parameters)
  const ended = await code
  await new Promise((resolve) => setImmediate(resolve))
  return { code: ended, out: io.out(), err: io.err(), queue }
}

/** Longer than any test lets it live. */
const FOR_EVER = 'exec sleep 60'

describe('work without a command', () => {
  it('prints records and accepts them when they have been taken', async () => {
    const { code, out, err, queue } = await workTo(['a', 'b', 'c'], { format: 'raw' })
    expect(code).toBe(0)
    expect(out).toBe('a\nb\nc\n')
    expect(err).toBe('')
    expect(queue.verdicts).toEqual(['0 accept', '1 accept', '2 accept'])
  })

  it('prints envelopes, as tail does', async () => {
    const { out } = await workTo([{ value: '{"n":1}', key: 'k', headers: { a: 'x' } }], {})
    expect(JSON.parse(out)).toEqual({
      topic: 'jobs',
      partition: 0,
      offset: 0,
      timestamp: 1_767_225_600_000,
      key: 'k',
      value: { n: 1 },
      headers: [{ key: 'a', value: 'x' }],
    })
  })

  it('stops after -n records, and gives the others back', async () => {
    const queue = new FakeWorkQueue(['a', 'b', 'c', 'd'])
    const { code, out } = await workTo(queue, { format: 'raw', num: 3, drain: false })
    expect(code).toBe(0)
    expect(out).toBe('a\nb\nc\n')
    expect(queue.verdicts).toEqual(['0 accept', '1 accept', '2 accept'])
    // None is fetched that it would not print.
    expect(queue.options).toMatchObject([{ batchSize: 3, prefetch: 0 }])
    expect((await workTo(['a'], { num: 0 })).queue.options).toEqual([])
  })

  it('accepts nothing that nobody has read', async () => {
    const stdout = new Writable({
      write: (_chunk, _encoding, done) => done(Object.assign(new Error(), { code: 'EPIPE' })),
    })
    const io = { ...aFakeIo(), stdout }
    const queue = new FakeWorkQueue(['a', 'b'])
    const options = { ...plain, format: 'raw', drain: false }
    const output = compileWorkOutput(io, options)
    const code = await performWork(io, queue, 'jobs', workerOptions(options), output, options)
    expect(code).toBe(0)
    expect(queue.verdicts).toEqual(['0 release', '1 release'])
  })

  it('counts and ends with 130 on SIGINT', async () => {
    const { io, queue, code } = start(['a', 'b'], { format: 'raw', drain: false })
    await vi.waitFor(() => expect(queue.settled).toHaveLength(2))
    io.signals.emit('SIGINT')
    expect(await code).toBe(130)
    expect(io.err()).toBe('2 records\n')
    expect(io.signals.listenerCount('SIGINT')).toBe(0)
  })

  it('stops when nothing has come for --idle', async () => {
    const { code, out } = await workTo(['a'], { format: 'raw', drain: false, idleMs: 20 })
    expect(code).toBe(0)
    expect(out).toBe('a\n')
  })

  it('fails with what keeps it out, or throws it out', async () => {
    const out = new FakeWorkQueue([])
    out.joinFailure = new MillraceError('GROUP_TYPE_MISMATCH', 'g is a stream group')
    const refused = await workTo(out, {})
    expect(refused.code).toBe(1)
    expect(refused.err).toContain('error: g is a stream group (GROUP_TYPE_MISMATCH)\nhint: ')
    const { io, queue, code } = start(['a'], { format: 'raw', drain: false })
    await vi.waitFor(() => expect(queue.settled).toHaveLength(1))
    queue.fail(new MillraceError('UNKNOWN_TOPIC', 'jobs is gone'))
    expect(await code).toBe(1)
    expect(io.err()).toContain('error: jobs is gone')
  })

  it('brings settings along for the group', async () => {
    const { queue } = await workTo([], {
      attempts: 3,
      backoff: { type: 'fixed', delayMs: 5 },
      order: 'key',
      start: 'earliest',
      deadLetters: 'failed',
      leaseMs: 60_000,
      set: ['rate.max=10'],
    })
    expect(queue.options).toMatchObject([
      {
        group: 'g',
        attempts: 3,
        backoff: { type: 'fixed', delayMs: 5 },
        order: 'key',
        deadLetters: { topic: 'failed' },
        leaseMs: 60_000,
        settings: { 'queue.start': 'earliest', 'rate.max': '10' },
      },
    ])
  })
})

describe('work --exec', () => {
  it('gives each record to a command: value, place, counts', async () => {
    const job = { value: 'hello', key: 'k\0', type: 'mail', headers: { trace: 'x' } }
    const { code, out, err, queue } = await workTo(
      [job, { value: null }],
      {
        exec: 'cat; echo " $MILLRACE_GROUP $MILLRACE_TOPIC/$MILLRACE_PARTITION:$MILLRACE_OFFSET $MILLRACE_KEY $MILLRACE_TYPE $MILLRACE_DELIVERY_COUNT $MILLRACE_FAILURE_COUNT $MILLRACE_TOMBSTONE $MILLRACE_HEADERS"',
      },
      { MILLRACE_KEY: 'another' },
    )
    expect(code).toBe(0)
    expect(out).toBe('hello g jobs/0:0 k mail 2 1 0 {"trace":"x"}\n g jobs/0:1   2 1 1 \n')
    expect(err).toBe('2 records\n')
    expect(queue.verdicts).toEqual(['0 accept', '1 accept'])
  })

  it.each([
    ['exit 0', 'accept', ''],
    ['exit 75', 'retry', 'code 75, to be tried again'],
    ['exit 1', 'reject', 'code 1, rejected'],
    ['exit 76', 'reject', 'code 76, rejected'],
    ['kill -SEGV $$', 'retry', 'ended by SIGSEGV, to be tried again'],
    ['sh -c "kill -KILL \\$\\$"; exit $?', 'retry', 'ended by signal 9, to be tried again'],
  ])('takes the end of `%s` as %s', async (exec, verdict, message) => {
    const { code, err, queue } = await workTo(['x'], { exec })
    expect(code).toBe(0)
    expect(queue.verdicts).toEqual([`0 ${verdict}`])
    if (message !== '') expect(err).toContain(`g: jobs/0:0: ${message}\n`)
  })

  it('keeps the end of stderr as the error, and passes all of it on', async () => {
    const exec = 'yes noise | head -c 6000 >&2; echo "no such address" >&2; exit 1'
    const { err, queue } = await workTo(['x'], { exec })
    const error = queue.settled[0]?.error
    expect(error?.name).toBe('ExitCode1')
    expect(error?.message).toMatch(/^[^]*noise\nno such address$/)
    expect(error?.message.length).toBeLessThan(2_100)
    expect(err.match(/noise/g)?.length).toBeGreaterThan(800)
  })

  it('stops, and rejects nothing, when the command cannot be run', async () => {
    const script = join(temporaryDirectory(), 'script')
    writeFileSync(script, 'not executable')
    for (const exec of ['no-such-program-here', script]) {
      const { code, err, queue } = await workTo(['a', 'b', 'c'], { exec, drain: false })
      expect(code).toBe(1)
      expect(err).toContain('error: the command cannot be run: it ')
      expect(err).toContain('nothing was rejected')
      expect(queue.verdicts).toEqual(['0 release'])
    }
  })

  it('gives back what comes after -n, and counts tries that failed', async () => {
    const queue = new FakeWorkQueue(['a', 'b', 'c', 'd'])
    const { code, err } = await workTo(queue, { exec: 'exit 75', num: 2, concurrency: 8 })
    expect(code).toBe(0)
    expect(queue.verdicts).toEqual(['0 retry', '1 retry'])
    expect(queue.options).toMatchObject([{ concurrency: 2, prefetch: 0 }])
    expect(err).toMatch(/\n2 records: 2 to be tried again\n$/)
  })

  it('runs several at once, and keeps their lines whole', async () => {
    const folder = temporaryDirectory()
    // Each waits for the other: one after the other they would never end.
    const exec = `cd ${folder}; touch at-$MILLRACE_OFFSET; printf "$MILLRACE_OFFSET: be"; echo warning >&2
      while [ ! -e at-0 ] || [ ! -e at-1 ]; do sleep 0.01; done; echo gin`
    const { code, out, err, queue } = await workTo(['a', 'b'], { exec, concurrency: 2 })
    expect(code).toBe(0)
    expect(out.split('\n').sort()).toEqual(['', '0: begin', '1: begin'])
    expect(err).toContain('jobs/0:1: warning\n')
    expect(queue.verdicts).toEqual(['0 accept', '1 accept'])
  })

  it('ends what takes longer than --timeout, with all that it has started, and tries it again', async () => {
    const file = join(temporaryDirectory(), 'ended')
    // A child of the shell that tidies up before it goes.
    const exec = `(trap 'sleep 0.1; touch ${file}; exit' TERM; while :; do sleep 0.01; done) & wait`
    const { code, err, queue } = await workTo(['x'], { exec, timeoutMs: 200 })
    expect(code).toBe(0)
    expect(queue.verdicts).toEqual(['0 retry'])
    expect(err).toContain('longer than 200 ms, to be tried again')
    expect(existsSync(file)).toBe(true)
  })

  it('kills what does not mind being asked', async () => {
    const io = aFakeIo({ env: environment })
    const out = new Output(io.stdout, () => undefined)
    const options = { group: 'g', timeoutMs: 50, prefixes: false, captures: false, patienceMs: 50 }
    const stubborn = new WorkCommand(`trap '' TERM; while :; do sleep 0.01; done`, io, out, options)
    let settled = false
    const handle = { name: 'jobs', value: bytes, key: bytes }
    const worker = new FakeWorkQueue(['x']).worker(handle, { group: 'g' }, async (job) => {
      const end = await stubborn.run(job, new AbortController().signal)
      expect(end).toMatchObject({ verdict: 'retry', signal: 'SIGKILL' })
      settled = true
    })
    await worker.ready()
    await vi.waitFor(() => expect(settled).toBe(true))
  })

  it('does not take a long command for an idle queue', async () => {
    const { queue } = await workTo(['a', 'b'], { exec: 'sleep 0.2', drain: false, idleMs: 50 })
    expect(queue.verdicts).toEqual(['0 accept', '1 accept'])
  })

  it('is not held up by what a command leaves behind', async () => {
    const { queue } = await workTo(['x'], { exec: 'sleep 30 & exit 0' })
    expect(queue.verdicts).toEqual(['0 accept'])
  })

  it('stops the command when the lease is lost, and says nothing to the broker', async () => {
    const folder = temporaryDirectory()
    const exec = `trap 'echo stopped > ${folder}/end; exit 0' TERM; touch ${folder}/begun; sleep 60 & wait`
    const { io, queue, code } = start(['x'], { exec })
    await vi.waitFor(() => expect(existsSync(join(folder, 'begun'))).toBe(true))
    queue.leases.get(0)?.abort(new MillraceError('LEASE_LOST', 'silent for too long'))
    expect(await code).toBe(0)
    expect(readFileSync(join(folder, 'end'), 'utf8')).toBe('stopped\n')
    expect(queue.settled).toEqual([])
    expect(io.err()).toContain('its lease was lost, so the command was stopped')
    expect(io.err()).toMatch(/\n1 record: 1 lost to others\n$/)
  })

  it('says so when the lease was lost before the end could be told', async () => {
    const queue = new FakeWorkQueue(['x'])
    queue.lost.add(0)
    const { code, err } = await workTo(queue, { exec: 'true' })
    expect(code).toBe(0)
    expect(err).toContain('its lease was lost before it was settled')
  })

  it('waits for commands in hand on Ctrl-C, and takes no more', async () => {
    const folder = temporaryDirectory()
    const go = join(folder, 'go')
    const exec = `touch ${folder}/begun; while [ ! -e ${go} ]; do sleep 0.01; done`
    const { io, queue, code } = start(['a', 'b'], { exec, drain: false })
    await vi.waitFor(() => expect(existsSync(join(folder, 'begun'))).toBe(true))
    io.signals.emit('SIGINT')
    await vi.waitFor(() => expect(io.err()).toContain('waits for the command in hand'))
    expect(queue.closedWith?.timeoutMs).toBeGreaterThan(3_600_000)
    writeFileSync(go, '')
    expect(await code).toBe(130)
    expect(queue.verdicts).toEqual(['0 accept'])
  })

  it('ends commands at the second Ctrl-C, gives their records back, and itself at the third', async () => {
    const folder = temporaryDirectory()
    const exec = `touch ${folder}/$MILLRACE_OFFSET; ${FOR_EVER}`
    const { io, queue, code } = start(['a', 'b'], { exec, concurrency: 2, drain: false })
    await vi.waitFor(() => expect(existsSync(join(folder, '1'))).toBe(true))
    io.signals.emit('SIGINT')
    io.signals.emit('SIGINT')
    expect(io.exits).toEqual([])
    expect(await code).toBe(130)
    expect(queue.verdicts).toEqual(['0 release', '1 release'])
    const stubborn = start(['a'], {
      exec: `trap '' TERM; touch ${folder}/stubborn; while :; do sleep 0.01; done`,
      drain: false,
    })
    await vi.waitFor(() => expect(existsSync(join(folder, 'stubborn'))).toBe(true))
    for (let i = 0; i < 3; i++) stubborn.io.signals.emit('SIGINT')
    expect(stubborn.io.exits).toEqual([130])
    expect(await stubborn.code).toBe(130)
  })

  it('writes a line about each record with --format json', async () => {
    const { out } = await workTo(['a'], {
      exec: 'cat; echo; echo bad >&2; exit 75',
      format: 'json',
    })
    expect(JSON.parse(out)).toEqual({
      topic: 'jobs',
      partition: 0,
      offset: 0,
      deliveryCount: 2,
      failureCount: 1,
      verdict: 'retry',
      exitCode: 75,
      signal: null,
      durationMs: expect.any(Number) as number,
      output: 'a\n',
      stderr: 'bad',
    })
  })

  it('is silent with --quiet', async () => {
    const { err } = await workTo(['a'], { exec: 'exit 75', quiet: true })
    expect(err).toBe('')
  })

  it('gives a value of a MiB as it is, and copes with a key that no environment holds', async () => {
    const value = 'v'.repeat(1 << 20)
    const { out, queue } = await workTo([{ value, key: 'k'.repeat(200_000) }], {
      exec: 'wc -c | tr -d " "; echo "${MILLRACE_KEY-none}"',
    })
    expect(out).toBe(`${1 << 20}\nnone\n`)
    expect(queue.verdicts).toEqual(['0 accept'])
  })

  it('does not mind a command that reads nothing', async () => {
    const { queue } = await workTo(['v'.repeat(1 << 20)], { exec: 'true' })
    expect(queue.verdicts).toEqual(['0 accept'])
  })
})
