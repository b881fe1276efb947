import { PassThrough } from 'node:stream'
import { describe, expect, it, vi } from 'vitest'
import {
  FakeQueueAdmin,
  aDelayed,
  aLetter,
  aPartition,
  aTask,
  anExplanation,
} from './fake-queue-admin.ts'
import { performDiscard, showDead, showLetter } from '../../src/cli/queue-dead.ts'
import {
  cancelThem,
  fireThem,
  moveIt,
  showCount,
  showDelayed,
} from '../../src/cli/queue-delayed.ts'
import { performRedrive, showRedrives, stopRedrive } from '../../src/cli/queue-redrive.ts'
import {
  applyConfig,
  explain,
  pause,
  peek,
  resume,
  showQueue,
  unblock,
} from '../../src/cli/queues.ts'
import { reportError } from '../../src/cli/report-error.ts'
import { decodeEnvelope } from '../../src/cli/envelope.ts'
import { MillraceError } from '../../src/client/index.ts'
import { aFakeIo, runCommand } from '../support/cli-io.ts'
import type { FakeIo } from '../support/cli-io.ts'

const text = { format: 'text' } as const
const json = { format: 'json' } as const

interface CommandOutcome {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** What went out; errors as the command line tells them. */
async function outcomeOf(
  work: (io: FakeIo) => Promise<number>,
  io: FakeIo = aFakeIo(),
): Promise<CommandOutcome> {
  const code = await work(io).catch((error: unknown) => reportError(io, error))
  await new Promise((resolve) => setImmediate(resolve))
  return { code, out: io.out(), err: io.err() }
}

function parsed(out: string): Record<string, unknown> {
  return JSON.parse(out) as Record<string, unknown>
}

function aTerminal(answer: string): FakeIo {
  const stdin = Object.assign(new PassThrough(), { isTTY: true })
  stdin.write(`${answer}\n`)
  return aFakeIo({ stdin, terminal: true })
}

describe('queue describe', () => {
  const all = { ...text, members: false, partitions: false, config: false }

  it('says how much there is, who works, and what the group has changed', async () => {
    const admin = new FakeQueueAdmin({
      members: [
        {
          memberId: 'app-1-abcd',
          clientId: 'app',
          host: '127.0.0.1',
          topic: 'emails',
          acquired: 7,
          credit: 3,
          connected: false,
          sinceHeardMs: 3_000,
        },
      ],
    })
    const { code, out } = await outcomeOf((io) => showQueue(io, admin, 'mailer', all))
    expect(code).toBe(0)
    expect(out).toMatch(/^state {5}working$/m)
    expect(out).toMatch(/^workers {3}1, 1 of them gone$/m)
    expect(out).toMatch(/^ready {5}1,200, for up to 1m05s$/m)
    expect(out).toMatch(/^so far {4}1,500 delivered, 1,490 accepted, 2 dead lettered$/m)
    expect(out).toMatch(/^1-abcd +app +127\.0\.0\.1 +emails +7 +3 +gone 3\.0s$/m)
    expect(out).toMatch(/^emails +0 +1,200 +7 +3 +0 +10 +40 +1240 +1m05s$/m)
    expect(out).toMatch(/^dead letters of emails: dlq\.mailer\.emails$/m)
    expect(out).toMatch(/^order +key +the group's$/m)
    expect(out).not.toContain('retry.max.attempts')
  })

  it('says why nothing comes', async () => {
    const error = new MillraceError('STORAGE_ERROR', 'the companion cannot be read')
    const admin = new FakeQueueAdmin({
      paused: true,
      pausedUntil: 4_102_444_800_000,
      windowFull: true,
      dlqUnavailable: true,
      throttledUntil: 4_102_444_800_000,
      topics: [{ topic: 'emails', deadLetterTopic: '', partitions: [aPartition({ error })] }],
    })
    const { out } = await outcomeOf((io) => showQueue(io, admin, 'mailer', all))
    expect(out).toMatch(/^state {5}paused until 2100-01-01T00:00:00\.000Z$/m)
    expect(out.match(/^note /gm)).toHaveLength(4)
    expect(out).toContain('emails/0 rests: the companion cannot be read (STORAGE_ERROR)')
    const facts = parsed(
      (await outcomeOf((io) => showQueue(io, admin, 'mailer', { ...all, ...json }))).out,
    )
    expect(facts).toMatchObject({
      paused: true,
      totals: { ready: 1_200, acquired: 7, parked: 3 },
      topics: [{ partitions: [{ error: { code: 'STORAGE_ERROR' } }] }],
    })
  })

  it('names groups that are near, and says when it is a stream group', async () => {
    const admin = new FakeQueueAdmin()
    const unknown = await outcomeOf((io) => showQueue(io, admin, 'mailr', all))
    expect(unknown).toMatchObject({ code: 1, out: '' })
    expect(unknown.err).toContain('hint: did you mean mailer?')
    const stream = await outcomeOf((io) => showQueue(io, admin, 'billing', all))
    expect(stream.err).toContain('`millrace group describe billing` shows it')
  })

  it('shows all settings with --config, and nothing else', async () => {
    const { out } = await outcomeOf((io) =>
      showQueue(io, new FakeQueueAdmin(), 'mailer', { ...all, config: true }),
    )
    expect(out).toMatch(/^retry\.max\.attempts +5 +default +0 to 1000$/m)
    expect(out).not.toContain('PARTITION')
  })

  it('looks again until interrupted', async () => {
    const io = aFakeIo()
    const running = showQueue(io, new FakeQueueAdmin(), 'mailer', { ...all, watchMs: 1 })
    await vi.waitFor(() => expect(io.out().match(/^state/gm)?.length).toBeGreaterThan(2))
    io.signals.emit('SIGINT')
    expect(await running).toBe(130)
  })
})

describe('queue config', () => {
  const none = { ...text, set: [], clear: [], dryRun: false }

  it('shows all settings, or changes some', async () => {
    const admin = new FakeQueueAdmin()
    const shown = await outcomeOf((io) => applyConfig(io, admin, 'mailer', {}, none))
    expect(shown.out).toContain('retry.max.attempts')
    expect(admin.calls).toEqual([])
    const options = { ...none, clear: ['rate.max'] }
    const changed = await outcomeOf((io) =>
      applyConfig(io, admin, 'mailer', { order: 'key' }, options),
    )
    expect(changed.out).toMatch(/^group mailer changed\n/)
    expect(changed.out).toMatch(/^order +key/m)
    expect(admin.calls).toEqual([
      ['configure', 'mailer', { set: { order: 'key' }, clear: ['rate.max'], validateOnly: false }],
    ])
    const facts = await outcomeOf((io) =>
      applyConfig(io, admin, 'mailer', {}, { ...none, ...json }),
    )
    expect(parsed(facts.out)).toMatchObject({ group: 'mailer', config: [{}, { name: 'order' }] })
  })
})

describe('queue pause and resume', () => {
  it('pauses until a time, or until resumed', async () => {
    const admin = new FakeQueueAdmin()
    const until = new Date('2100-01-01T00:00:00Z')
    const { out } = await outcomeOf((io) => pause(io, admin, 'mailer', until, text))
    expect(out).toContain('paused until 2100-01-01T00:00:00.000Z')
    const open = await outcomeOf((io) => pause(io, admin, 'mailer', undefined, json))
    expect(parsed(open.out)).toEqual({ group: 'mailer', paused: true, until: null })
    const resumed = await outcomeOf((io) => resume(io, admin, 'mailer', json))
    expect(parsed(resumed.out)).toEqual({ group: 'mailer', paused: false })
    expect(admin.calls).toEqual([
      ['pause', 'mailer', until],
      ['pause', 'mailer', undefined],
      ['resume', 'mailer'],
    ])
  })
})

describe('queue peek', () => {
  it('shows records with their states', async () => {
    const admin = new FakeQueueAdmin()
    const options = { ...text, partition: 1, state: 'parked', limit: 5 } as const
    const { out } = await outcomeOf((io) => peek(io, admin, 'mailer', 'emails', options))
    expect(out).toMatch(/^emails\/0:17 +ready +1 +1 +- +\{"to":"a@example\.org"\}$/m)
    expect(out).toMatch(/^emails\/1:4 +to be retried in 1m(30|29)s +1 +1 +k +\(tombstone\)$/m)
    expect(admin.calls).toEqual([
      ['peek', 'mailer', 'emails', { partition: 1, state: 'parked', limit: 5 }],
    ])
  })

  it('names what a record has to wait for', async () => {
    const admin = new FakeQueueAdmin()
    admin.explanation = anExplanation({ blockedByOffset: 12 })
    const { out } = await outcomeOf((io) => peek(io, admin, 'mailer', 'emails', text))
    expect(out).toMatch(/^emails\/0:17 +ready, after 12 /m)
  })

  it('is a line for each in JSON, whose envelope `produce --json` takes', async () => {
    const admin = new FakeQueueAdmin()
    const { out } = await outcomeOf((io) => peek(io, admin, 'mailer', 'emails', json))
    const lines = out.trimEnd().split('\n').map(parsed)
    expect(lines).toMatchObject([
      { group: 'mailer', state: 'available', record: { topic: 'emails', offset: 17 } },
      { state: 'parked', record: { key: 'k', value: null } },
    ])
    const envelope = decodeEnvelope(Buffer.from(JSON.stringify(lines[0]?.['record'])))
    expect(envelope.value?.toString()).toBe('{"to":"a@example.org"}')
  })
})

describe('queue explain', () => {
  it('says where a record is, why, and what it has failed with', async () => {
    const admin = new FakeQueueAdmin()
    admin.explanation = anExplanation({
      state: 'parked',
      reason: 'it failed twice',
      dueAt: Date.now() + 60_500,
      blockedByOffset: 12,
      failures: [
        {
          type: 'ExitCode75',
          message: 'busy\u001b[31m',
          stack: '',
          at: 1_767_225_600_000,
          memberId: 'w',
          kind: 'retry',
        },
      ],
    })
    const { out } = await outcomeOf((io) => explain(io, admin, 'mailer', ['emails', '0:17'], text))
    expect(out).toMatch(/^state {7}parked: it failed twice$/m)
    expect(out).toMatch(/^due .* in 1m0\ds$/m)
    expect(out).toMatch(/^waits for {3}emails\/0:12$/m)
    expect(out).toContain('2026-01-01T00:00:00.000Z  retry  ExitCode75: busy\\x1b[31m')
    expect(admin.calls).toEqual([['explain', 'mailer', 'emails', 0, 17]])
    const facts = await outcomeOf((io) => explain(io, admin, 'mailer', ['emails/0:17'], json))
    expect(parsed(facts.out)).toMatchObject({
      group: 'mailer',
      topic: 'emails',
      offset: 17,
      state: 'parked',
      memberId: null,
    })
  })
})

describe('queue unblock', () => {
  it('skips or tries again', async () => {
    const admin = new FakeQueueAdmin()
    const options = { ...json, skip: true, retry: false }
    const { out } = await outcomeOf((io) =>
      unblock(io, admin, 'mailer', ['emails', '2:9'], options),
    )
    expect(parsed(out)).toMatchObject({ partition: 2, offset: 9, unblocked: 'skip' })
    expect(admin.calls).toEqual([['unblock', 'mailer', 'emails', 2, 9, 'skip']])
  })
})

describe('queue dead list', () => {
  const options = { ...text, all: false }

  it('shows where they are, where they come from, and their errors', async () => {
    const admin = new FakeQueueAdmin()
    for (const words of [['dlq.mailer.emails'], ['mailer', 'emails'], ['mailer']]) {
      const { code, out } = await outcomeOf((io) => showDead(io, admin, words, {}, options))
      expect(code).toBe(0)
      expect(out).toMatch(
        /^ +0:3 +2026-01-01T00:01:00\.000Z +emails\/0:17 +attempts_exhausted +5 +TypeError: no such address$/m,
      )
    }
  })

  it('shows a hundred, and says that there are more; JSON has all', async () => {
    const admin = new FakeQueueAdmin()
    admin.letters = Array.from({ length: 102 }, (_, i) =>
      aLetter({ record: { ...aLetter().record, offset: i } }),
    )
    const shown = await outcomeOf((io) => showDead(io, admin, ['mailer', 'emails'], {}, options))
    expect(shown.out.trimEnd().split('\n')).toHaveLength(101)
    expect(shown.err).toContain('the first 100; -n shows more')
    const exact = await outcomeOf((io) =>
      showDead(io, admin, ['mailer', 'emails'], { limit: 102 }, options),
    )
    expect(exact.out.trimEnd().split('\n')).toHaveLength(103)
    expect(exact.err).toBe('')
    const lines = await outcomeOf((io) =>
      showDead(io, admin, ['mailer', 'emails'], {}, { ...options, ...json }),
    )
    expect(lines.out.trimEnd().split('\n').map(parsed)).toHaveLength(102)
    expect(parsed(lines.out.split('\n')[1] ?? '')).toMatchObject({
      sourceOffset: 17,
      offset: 1,
      error: { type: 'TypeError' },
      record: { headers: [{ key: 'dlq.group' }, { key: 'trace', value: 'x1' }] },
    })
  })

  it('says what to name when there are none of that name', async () => {
    const admin = new FakeQueueAdmin()
    for (const word of ['emails', 'nothing']) {
      const { code, err } = await outcomeOf((io) => showDead(io, admin, [word], {}, options))
      expect(code).toBe(1)
      expect(err).toContain(`error: ${word} has no dead letters`)
      expect(err).toContain('`millrace queue describe GROUP` names the topic of its dead letters')
    }
    admin.info = {
      ...admin.info,
      topics: ['emails', 'sms'].map((topic) => ({ topic, deadLetterTopic: '', partitions: [] })),
    }
    const several = await outcomeOf((io) => showDead(io, admin, ['mailer'], {}, options))
    expect(several.code).toBe(2)
    expect(several.err).toContain('hint: write mailer and one of emails, sms')
  })
})

describe('queue dead show', () => {
  it('shows all of one: history, error with its stack, headers, value', async () => {
    const admin = new FakeQueueAdmin()
    for (const words of [
      ['mailer', 'emails', '0:3'],
      ['dlq.mailer.emails', '3'],
      ['dlq.mailer.emails/0:3'],
    ]) {
      const { out } = await outcomeOf((io) => showLetter(io, admin, words, text))
      expect(out).toMatch(/^record {4}emails\/0:17$/m)
      expect(out).toMatch(/^tries {5}deliveries 5, failures 5, redrives 0$/m)
      expect(out).toMatch(/^error {5}TypeError: no such address\n {10}TypeError: no\n/m)
      expect(out).toMatch(/^header {4}trace=x1$/m)
      expect(out).not.toContain('dlq.group')
      expect(out).toMatch(/^value {5}\{"to":"a@example\.org"\}$/m)
    }
    const facts = await outcomeOf((io) => showLetter(io, admin, ['mailer', 'emails', '0:3'], json))
    expect(parsed(facts.out)).toMatchObject({ sourceTopic: 'emails', record: { offset: 3 } })
  })

  it('says so when it is not there, and how one is named', async () => {
    const admin = new FakeQueueAdmin()
    // The offset of another partition is not meant.
    const other = await outcomeOf((io) => showLetter(io, admin, ['mailer', 'emails', '1:3'], text))
    expect(other.err).toContain('there is no dead letter 1:3 of mailer emails')
    const gone = await outcomeOf((io) => showLetter(io, admin, ['mailer', 'emails', '0:9'], text))
    expect(gone.code).toBe(1)
    expect(gone.err).toContain('there is no dead letter 0:9 of mailer emails')
    const bad = await outcomeOf((io) => showLetter(io, admin, ['mailer', 'emails'], text))
    expect(bad.code).toBe(2)
  })
})

describe('queue dead discard', () => {
  const plain = { ...text, yes: false, dryRun: false }

  it('asks on a terminal, and does what was allowed', async () => {
    const admin = new FakeQueueAdmin()
    const no = await outcomeOf(
      (io) => performDiscard(io, admin, ['mailer', 'emails'], {}, plain),
      aTerminal('n'),
    )
    expect(no.code).toBe(1)
    expect(admin.calls).toEqual([])
    const yes = await outcomeOf(
      (io) => performDiscard(io, admin, ['mailer', 'emails'], { reason: 'rejected' }, plain),
      aTerminal('y'),
    )
    expect(yes).toMatchObject({ code: 0, out: '2 dead letters of mailer emails discarded\n' })
    expect(admin.calls).toMatchObject([['discard', {}, { reason: 'rejected', dryRun: false }]])
  })

  it('changes nothing with --dry-run, nor where nobody can be asked, which is code 2', async () => {
    const admin = new FakeQueueAdmin()
    const dry = await outcomeOf((io) =>
      performDiscard(io, admin, ['dlq.mailer.emails'], {}, { ...json, yes: false, dryRun: true }),
    )
    expect(dry.code).toBe(0)
    expect(parsed(dry.out)).toEqual({
      place: 'dlq.mailer.emails',
      found: 2,
      dryRun: true,
      discarded: 0,
    })
    const nobody = await outcomeOf((io) =>
      performDiscard(io, admin, ['dlq.mailer.emails'], {}, plain),
    )
    expect(nobody.code).toBe(2)
    expect(nobody.err).toContain('nothing was changed')
    expect(admin.calls.filter(([name]) => name === 'discard')).toEqual([])
  })
})

describe('queue redrive', () => {
  const plain = {
    ...text,
    yes: false,
    dryRun: false,
    header: [],
    keepAttempts: false,
    background: false,
  }

  it('shows the plan, asks, moves, and waits for the end', async () => {
    const admin = new FakeQueueAdmin()
    admin.taskSteps = [aTask({ moved: 1 }), aTask({ state: 'done', moved: 2 })]
    const { code, out } = await outcomeOf(
      (io) => performRedrive(io, admin, ['mailer', 'emails'], { reason: 'rejected' }, plain),
      aTerminal('yes'),
    )
    expect(code).toBe(0)
    expect(out).toContain(
      '2 dead letters of mailer emails (2KiB), 2026-01-01T00:00:00.000Z to 2026-01-01T00:01:00.000Z, to group mailer\n',
    )
    expect(out).toMatch(/2 dead letters moved\n$/)
    expect(admin.calls).toMatchObject([
      [
        'redrive',
        { group: 'mailer', topic: 'emails' },
        { reason: 'rejected', background: true, resetAttempts: true },
      ],
    ])
  })

  it('only plans with --dry-run, is refused where nobody can be asked, and needs neither with --yes', async () => {
    const admin = new FakeQueueAdmin()
    const place = ['dlq.mailer.emails']
    const dry = await outcomeOf((io) =>
      performRedrive(io, admin, place, {}, { ...plain, ...json, dryRun: true }),
    )
    expect(dry.code).toBe(0)
    expect(parsed(dry.out)).toMatchObject({
      place: 'dlq.mailer.emails',
      to: null,
      task: null,
      preview: { count: 2, samples: [{ record: { offset: 3 } }, { reason: 'rejected' }] },
    })
    const nobody = await outcomeOf((io) => performRedrive(io, admin, place, {}, plain))
    expect(nobody.code).toBe(2)
    expect(admin.calls.filter(([name]) => name === 'redrive')).toEqual([])
    const options = { ...plain, ...json, yes: true, to: 'emails', rate: 7, keepAttempts: true }
    const done = await outcomeOf((io) => performRedrive(io, admin, place, {}, options))
    expect(done.code).toBe(0)
    expect(parsed(done.out)).toMatchObject({ to: 'emails', task: { state: 'done', moved: 2 } })
    expect(admin.calls.at(-1)).toMatchObject([
      'redrive',
      'dlq.mailer.emails',
      { to: 'emails', maxPerSec: 7, resetAttempts: false },
    ])
  })

  it('leaves it to the broker with --background, and on Ctrl-C', async () => {
    const admin = new FakeQueueAdmin()
    admin.taskSteps = [aTask({ moved: 1 })]
    const options = { ...plain, yes: true }
    const started = await outcomeOf((io) =>
      performRedrive(io, admin, ['mailer'], {}, { ...options, background: true }),
    )
    expect(started.out).toContain('`millrace queue redrive cancel r-1` ends it')
    const io = aFakeIo()
    const running = performRedrive(io, admin, ['mailer'], {}, options)
    await vi.waitFor(() => expect(io.signals.listenerCount('SIGINT')).toBe(1))
    io.signals.emit('SIGINT')
    expect(await running).toBe(130)
    expect(io.err()).toContain('the redrive goes on without this command')
    expect(admin.calls.some(([name]) => name === 'cancel-redrive')).toBe(false)
  })

  it.each([
    ['cancelled', 'then somebody cancelled it', undefined],
    ['failed', 'the redrive has failed after 1 of 2: disk full', 'moves the rest'],
  ] as const)('fails when the task is %s', async (state, message, hint) => {
    const admin = new FakeQueueAdmin()
    admin.taskSteps = [aTask({ state, moved: 1, error: 'disk full' })]
    const { code, out, err } = await outcomeOf((io) =>
      performRedrive(io, admin, ['mailer'], {}, { ...plain, yes: true }),
    )
    expect(code).toBe(1)
    expect(out + err).toContain(message)
    if (hint !== undefined) expect(err).toContain(hint)
  })

  it('has nothing to do without letters', async () => {
    const admin = new FakeQueueAdmin()
    admin.letters = []
    const { code, out } = await outcomeOf((io) => performRedrive(io, admin, ['mailer'], {}, plain))
    expect(code).toBe(0)
    expect(out).toBe('nothing to redrive in mailer emails\n')
  })

  it('lists and cancels tasks', async () => {
    const admin = new FakeQueueAdmin()
    const list = await outcomeOf((io) => showRedrives(io, admin, text))
    expect(list.out).toMatch(/^r-1 +dlq\.mailer\.emails +their group +done +2 +2 +100 /m)
    const facts = await outcomeOf((io) => showRedrives(io, admin, json))
    expect(parsed(facts.out)).toMatchObject({ redrives: [{ taskId: 'r-1', state: 'done' }] })
    const cancelled = await outcomeOf((io) => stopRedrive(io, admin, 'r-1', text))
    expect(cancelled.out).toBe('redrive r-1 is cancelled; 1 of 2 had been moved\n')
    const asJson = await outcomeOf((io) => stopRedrive(io, admin, 'r-1', json))
    expect(parsed(asJson.out)).toMatchObject({ taskId: 'r-1', state: 'cancelled' })
    const unknown = await outcomeOf((io) => stopRedrive(io, admin, 'r-2', text))
    expect(unknown.err).toContain('`millrace queue redrive list` shows')
  })
})

describe('queue delayed', () => {
  it('lists what waits, as a table and in lines of JSON', async () => {
    const admin = new FakeQueueAdmin()
    admin.delayedRecords = [aDelayed({ deliverAt: 0 }), aDelayed({ dedupeId: 'd-1' })]
    const shown = await outcomeOf((io) => showDelayed(io, admin, 'emails', { ...text }))
    expect(shown.out).toMatch(/^1970-01-01T00:00:00\.000Z +due +emails +0\.7\.ab +- /m)
    expect(shown.out).toMatch(/^2100-01-01T00:00:00\.000Z +\d+d\d+h +emails /m)
    expect(admin.calls).toMatchObject([['delayed', { topic: 'emails' }]])
    const lines = (await outcomeOf((io) => showDelayed(io, admin, undefined, json))).out
    expect(lines.trimEnd().split('\n').map(parsed)).toMatchObject([
      { delayId: '0.7.ab', dedupeId: null, record: { value: { to: 'a@example.org' } } },
      { dedupeId: 'd-1' },
    ])
    const one = await outcomeOf((io) => showDelayed(io, admin, undefined, { ...json, limit: 1 }))
    expect(one.out.trimEnd().split('\n')).toHaveLength(1)
  })

  it('counts, cancels, moves and fires', async () => {
    const admin = new FakeQueueAdmin()
    const at = new Date('2100-01-01T00:00:00Z')
    const count = await outcomeOf((io) => showCount(io, admin, 'emails', text))
    expect(count.out).toBe('1,234 records wait for emails\n')
    expect(parsed((await outcomeOf((io) => showCount(io, admin, undefined, json))).out)).toEqual({
      topic: null,
      count: 1_234,
    })
    const cancelled = await outcomeOf((io) => cancelThem(io, admin, ['0.7.ab', '0.7.ab'], json))
    expect(parsed(cancelled.out)).toEqual({ delayId: '0.7.ab', cancelled: true })
    const moved = await outcomeOf((io) => moveIt(io, admin, '0.7.ab', at, json))
    expect(parsed(moved.out)).toEqual({ delayId: '0.7.ab', deliverAt: at.getTime() })
    const fired = await outcomeOf((io) => fireThem(io, admin, ['0.7.ab'], json))
    expect(parsed(fired.out)).toEqual({ delayId: '0.7.ab', partition: 2, offset: 99 })
    const unknown = await outcomeOf((io) => cancelThem(io, admin, ['x'], text))
    expect(unknown.code).toBe(1)
    expect(unknown.err).toContain('hint: `millrace queue delayed list` shows what waits')
  })
})

describe('what is typed about queues', () => {
  it.each([
    [['queue', 'send', 't', '--delay', '5m', '--at', '2100-01-01'], '--delay and --at'],
    [['queue', 'send', 't', '--at', 'soon'], '--at soon is no time'],
    [['queue', 'send', 't', '--backoff', 'soon'], '--backoff soon is no backoff'],
    [['queue', 'send', 't', '--json', '-v', 'x'], '--json and --value'],
    [['queue', 'send', 't', '--attempts', '0'], '--attempts 0 is too small'],
    [['work', 't'], "required option '-g, --group <name>' not specified"],
    [['work', 't', '-g', 'g', '-c', '4'], '--concurrency goes with --exec'],
    [['work', 't', '-g', 'g', '--timeout', '1s'], '--timeout goes with --exec'],
    [['work', 't', '-g', 'g', '-e', 'cat', '-f', 'raw'], '--exec and --format raw'],
    [['work', 't', '-g', 'g', '--order', 'keys'], '--order keys is none of none, key, partition'],
    [['work', 't', '-g', 'g', '--set', 'x'], '--set x is no pair'],
    [['queue', 'explain', 'g', 't'], 't is no place of a record'],
    [['queue', 'unblock', 'g', 't', '0:1'], 'what is to become of it?'],
    [['queue', 'unblock', 'g', 't', '0:1', '--skip', '--retry'], '--skip and --retry'],
    [['queue', 'pause', 'g', '--for', '1m', '--until', '2100-01-01'], '--until and --for'],
    [['queue', 'pause', 'g', '--until', '2000-01-01'], 'is over already'],
    [['queue', 'peek', 'g', 't', '--state', 'blockd'], '--state blockd is none of'],
    [['queue', 'redrive'], 'whose dead letters?'],
    [['queue', 'redrive', 'a', 'b', 'c'], 'whose dead letters?'],
    [['queue', 'redrive', 'a', '--reason', 'x'], '--reason x is none of rejected'],
    [['queue', 'dead', 'list', 'a', '-o', '9:1'], '--offsets 9:1 ends before it starts'],
    [['queue', 'dead', 'show', 'a'], 'which dead letter?'],
    [['queue', 'dead', 'discard'], 'whose dead letters?'],
    [['queue', 'delayed', 'move', 'x'], 'when?'],
    [['queue', 'delayed', 'move', 'x', '--at', '2100-01-01', '--delay', '1s'], '--at and --delay'],
    [['queue', 'describ', 'x'], "unknown command 'describ'"],
  ])('%j is refused before a broker is asked, with code 2', async (argv, message) => {
    // Nothing listens there: whoever asked would end with 1.
    const { code, out, err } = await runCommand(argv, {
      env: { MILLRACE_SERVER: '127.0.0.1:1' },
    })
    expect(err.split('\n')[0]).toContain(message)
    expect(code).toBe(2)
    expect(out).toBe('')
  })

  it('takes --format in every command that prints something', async () => {
    const seen: string[] = []
    const look = async (about: readonly string[]): Promise<void> => {
      const { out } = await runCommand(['help', ...about])
      const commands = out.split('\nCommands:\n')[1]?.split('\n\n')[0] ?? ''
      const names = [...commands.matchAll(/^ {2}(\w[\w-]*)/gm)].map((match) => match[1] ?? '')
      for (const name of names) if (name !== 'help') await look([...about, name])
      if (names.length > 0 && about.at(-1) !== 'redrive') return
      expect(out, about.join(' ')).toMatch(/--format <format> +(text or json|pretty, json)/)
      seen.push(about.slice(1).join(' '))
    }
    await look(['queue'])
    expect(seen.sort()).toEqual([
      'config',
      'dead discard',
      'dead list',
      'dead show',
      'delayed cancel',
      'delayed count',
      'delayed fire',
      'delayed list',
      'delayed move',
      'describe',
      'explain',
      'list',
      'pause',
      'peek',
      'redrive',
      'redrive cancel',
      'redrive list',
      'resume',
      'send',
      'unblock',
      'work',
    ])
  })

  it('has help for each command, and a page', async () => {
    const { out } = await runCommand(['help', 'queues'])
    expect(out).toContain('75 (EX_TEMPFAIL)')
    for (const about of [
      ['work'],
      ['queue', 'send'],
      ['queue', 'redrive'],
      ['queue', 'redrive', 'cancel'],
      ['queue', 'dead', 'show'],
      ['queue', 'delayed', 'move'],
    ]) {
      expect((await runCommand(['help', ...about])).out).toContain(
        `Usage: millrace ${about.join(' ')}`,
      )
    }
    const { code, err } = await runCommand(['queue'])
    expect(code).toBe(2)
    expect(err).toContain('Usage: millrace queue')
  })
})
