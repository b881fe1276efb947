import { PassThrough } from 'node:stream'
import { describe, expect, it, vi } from 'vitest'
import { FakeGroupAdmin, aMember } from './fake-group-admin.ts'
import { performReset } from '../../src/cli/group-reset.ts'
import type { ResetGroupOptions, ResetTarget } from '../../src/cli/group-reset.ts'
import {
  removeGroups,
  removeOffsets,
  showGroup,
  showGroups,
  writeOffsets,
} from '../../src/cli/groups.ts'
import { reportError } from '../../src/cli/report-error.ts'
import { aFakeIo } from '../support/cli-io.ts'
import type { FakeIo } from '../support/cli-io.ts'

const text = { format: 'text' } as const
const json = { format: 'json' } as const

function aBillingGroup(): FakeGroupAdmin {
  return new FakeGroupAdmin([
    { topic: 'orders', partition: 0, start: 10, end: 1_500, committed: 300 },
    { topic: 'orders', partition: 1, start: 0, end: 7, committed: 7 },
    { topic: 'refunds', partition: 0, start: 0, end: 2 },
  ])
}

/** What went out; errors as the command line tells them. */
async function outcomeOf(
  io: FakeIo,
  work: () => Promise<number>,
): Promise<{ code: number; out: string; err: string }> {
  const code = await work().catch((error: unknown) => reportError(io, error))
  await new Promise((resolve) => setImmediate(resolve))
  return { code, out: io.out(), err: io.err() }
}

function aTerminal(answer: string): FakeIo {
  const stdin = Object.assign(new PassThrough(), { isTTY: true })
  stdin.write(`${answer}\n`)
  return aFakeIo({ stdin, terminal: true })
}

describe('group list', () => {
  it('shows groups in a table, or in one JSON document', async () => {
    const admin = aBillingGroup()
    const io = aFakeIo()
    await outcomeOf(io, () => showGroups(io, admin, text, /bill/))
    expect(io.out()).toBe(
      'GROUP    TYPE    STATE  MEMBERS  EPOCH\nbilling  stream  empty        0      7\n',
    )
    const other = aFakeIo()
    const { out } = await outcomeOf(other, () => showGroups(other, admin, json, undefined))
    expect(JSON.parse(out)).toMatchObject({ groups: [{ group: 'audit' }, { group: 'billing' }] })
  })
})

describe('group describe', () => {
  const both = { ...text, members: false, offsets: false, timeLag: true }

  it('shows who owns what, and the lag in records and in time, in units for people', async () => {
    const admin = aBillingGroup()
    admin.details.lagMs = 65_000
    admin.members = [
      aMember({
        memberId: 'abcdefgh-1',
        owned: [
          { topic: 'orders', partition: 0 },
          { topic: 'orders', partition: 1 },
        ],
        revoking: [{ topic: 'orders', partition: 1 }],
        target: [{ topic: 'orders', partition: 0 }],
      }),
      aMember({
        memberId: 'abcdefgh-2',
        target: [{ topic: 'orders', partition: 1 }],
        connected: false,
        sinceHeartbeatMs: 3_000,
      }),
      aMember({ memberId: 'zzz', instanceId: 'worker-1' }),
    ]
    const io = aFakeIo()
    const { out } = await outcomeOf(io, () => showGroup(io, admin, 'billing', both))
    expect(out).toMatch(/^lag {7}1,202 records, 1m05s$/m)
    // As much of an id as tells it from the others.
    expect(out).toMatch(/^abcdefgh-1 +app +127\.0\.0\.1 +3 +1\.2s +orders\/0-1 +orders\/1$/m)
    expect(out).toMatch(/^abcdefgh-2 +app .* gone 3\.0s of 45s +orders\/1$/m)
    expect(out).toMatch(/^worker-1 /m)
    expect(out).toMatch(/^orders +0 +10 +300 +1500 +1,200 +1m05s +abcdefgh-1$/m)
    expect(out).toMatch(/^orders +1 +0 +7 +7 +0 +- +abcdefgh-1$/m)
    expect(out).toMatch(/^refunds +0 +0 +- +2 +2 +1m05s +-$/m)
  })

  it('says that an offset is gone when it lies outside the log', async () => {
    const admin = new FakeGroupAdmin([
      { topic: 'orders', partition: 0, start: 50, end: 60, committed: 17 },
    ])
    const io = aFakeIo()
    const { out } = await outcomeOf(io, () => showGroup(io, admin, 'billing', both))
    expect(out).toMatch(/^orders +0 +50 +17 lost +60 /m)
  })

  it('shows only members or only partitions when told so, raw numbers in JSON', async () => {
    const admin = aBillingGroup()
    admin.members = [aMember()]
    admin.details.lagMs = 65_000
    for (const [flags, present, absent] of [
      [{ members: true }, 'members', 'partitions'],
      [{ offsets: true }, 'partitions', 'members'],
    ] as const) {
      const io = aFakeIo()
      const options = { ...both, ...flags, format: 'json' } as const
      const facts = JSON.parse(
        (await outcomeOf(io, () => showGroup(io, admin, 'billing', options))).out,
      ) as Record<string, unknown>
      expect(facts).toHaveProperty(present)
      expect(facts).not.toHaveProperty(absent)
      if (present === 'partitions') {
        expect(facts[present]).toMatchObject([{ committed: 300, lag: 1200, lagMs: 65_000 }, {}, {}])
      }
    }
  })

  it('watches until a signal comes, one look below the other where there is no terminal', async () => {
    const io = aFakeIo()
    const admin = aBillingGroup()
    const done = showGroup(io, admin, 'billing', { ...both, watchMs: 1 })
    await vi.waitFor(() => expect(io.out().match(/^group /gm)?.length).toBeGreaterThan(2))
    io.signals.emit('SIGINT')
    expect(await done).toBe(130)
    expect(io.out()).not.toContain('\u001b')
    expect(io.signals.listenerCount('SIGINT')).toBe(0)
  })

  it('watches on a terminal in one place, without wiping it before', async () => {
    const io = aFakeIo({ terminal: true })
    const done = showGroup(io, aBillingGroup(), 'billing', { ...both, watchMs: 1 })
    await vi.waitFor(() => expect(io.out().split('\u001b[H').length).toBeGreaterThan(2))
    io.signals.emit('SIGTERM')
    expect(await done).toBe(143)
    expect(io.out()).toContain('billing\u001b[K\n')
    expect(io.out()).not.toContain('\u001b[2J')
  })

  it('calls members by the name of their program and a little of their id', async () => {
    const admin = aBillingGroup()
    admin.members = [
      aMember({ memberId: 'app-0123456789ab', clientId: 'app' }),
      aMember({ memberId: 'app-9123456789ab', clientId: 'app' }),
    ]
    const io = aFakeIo()
    const { out } = await outcomeOf(io, () => showGroup(io, admin, 'billing', both))
    expect(out).toMatch(/^app-01234567 +app /m)
    expect(out).toMatch(/^app-91234567 +app /m)
  })

  it('stops watching when nobody looks any more', async () => {
    const io = aFakeIo()
    const done = showGroup(io, aBillingGroup(), 'billing', { ...both, watchMs: 60_000 })
    await vi.waitFor(() => expect(io.out()).toContain('group '))
    io.stdout.destroy()
    expect(await done).toBe(0)
  })

  it('names groups that are near', async () => {
    const io = aFakeIo()
    const { code, err } = await outcomeOf(io, () => showGroup(io, aBillingGroup(), 'biling', both))
    expect(code).toBe(1)
    expect(err).toMatch(/^error: there is no group biling \(UNKNOWN_GROUP\)$/m)
    expect(err).toMatch(/^hint: did you mean billing\?$/m)
  })
})

describe('group export', () => {
  it('writes what reset --from-file reads, as JSON lines and as CSV', async () => {
    const io = aFakeIo()
    const { out } = await outcomeOf(io, () =>
      writeOffsets(io, aBillingGroup(), 'billing', { csv: false }),
    )
    expect(out).toBe(
      '{"topic":"orders","partition":0,"offset":300}\n{"topic":"orders","partition":1,"offset":7}\n',
    )
    const csv = aFakeIo()
    await outcomeOf(csv, () => writeOffsets(csv, aBillingGroup(), 'billing', { csv: true }))
    expect(csv.out()).toBe('topic,partition,offset\norders,0,300\norders,1,7\n')
  })
})

describe('group delete and delete-offsets', () => {
  it('tell who is in the way', async () => {
    const admin = aBillingGroup()
    admin.members = [
      aMember({ owned: [{ topic: 'orders', partition: 0 }], host: '10.0.0.7' }),
      ...Array.from({ length: 6 }, (_, i) => aMember({ memberId: `m${i}`, instanceId: `i${i}` })),
    ]
    const io = aFakeIo()
    const { code, err } = await outcomeOf(io, () =>
      removeGroups(io, admin, ['billing'], { ...text, yes: true }),
    )
    expect(code).toBe(1)
    expect(err).toContain('(GROUP_NOT_EMPTY)')
    expect(err).toContain('hint: stop its members first: app at 10.0.0.7 (orders/0), i0 at')
    expect(err).toContain('and 2 more; one that was killed counts')
  })

  it('ask on a terminal, and take no for an answer', async () => {
    const admin = aBillingGroup()
    const no = aTerminal('n')
    expect(await removeGroups(no, admin, ['billing'], { ...text, yes: false })).toBe(1)
    expect(admin.deleted).toEqual([])
    const yes = aTerminal('y')
    expect(await removeGroups(yes, admin, ['billing'], { ...text, yes: false })).toBe(0)
    expect(admin.deleted).toEqual(['billing'])
    expect(yes.out()).toBe('group billing deleted\n')
  })

  it('say how many offsets are gone', async () => {
    const io = aFakeIo()
    const options = { ...text, topic: ['orders'], partitions: [1], yes: true }
    const { out } = await outcomeOf(io, () =>
      removeOffsets(io, aBillingGroup(), 'billing', options),
    )
    expect(out).toBe('1 committed offset of billing in orders deleted\n')
  })
})

describe('group reset', () => {
  const options: ResetGroupOptions = {
    format: 'text',
    topic: [],
    yes: false,
    dryRun: false,
    create: false,
  }
  const toStart: ResetTarget = { kind: 'position', position: 'start' }

  function reset(
    io: FakeIo,
    admin: FakeGroupAdmin,
    target: ResetTarget,
    more: Partial<ResetGroupOptions> = {},
    group = 'billing',
  ): Promise<{ code: number; out: string; err: string }> {
    return outcomeOf(io, () => performReset(io, admin, group, target, { ...options, ...more }))
  }

  it('shows from, to, delta and what was out of the log, and changes nothing with --dry-run', async () => {
    const admin = aBillingGroup()
    const { code, out, err } = await reset(
      aFakeIo(),
      admin,
      { kind: 'shift', by: -295 },
      { dryRun: true },
    )
    expect(code).toBe(0)
    expect(err).toBe('')
    expect(out).toMatch(/^orders +0 +300 +10 +-290 +1,490 +brought into \[10, 1500\]$/m)
    expect(out).toMatch(/^refunds +0 +- +0 +- +2 +brought into \[0, 2\]$/m)
    expect(out).toMatch(/^a dry run: 3 partitions of billing would change/m)
    expect(admin.resets).toEqual([])
  })

  it('does just what the plan said after a yes', async () => {
    const admin = aBillingGroup()
    const io = aTerminal('yes')
    const { code, out, err } = await reset(io, admin, toStart)
    expect(code).toBe(0)
    expect(out.indexOf('FROM')).toBeLessThan(out.indexOf('group billing reset: 3 partitions'))
    expect(err).toContain('reset group billing, 3 partitions? [y/N]')
    expect(admin.resets).toEqual([
      {
        group: 'billing',
        options: {
          to: {
            offsets: [
              { topic: 'orders', partition: 0, offset: 10 },
              { topic: 'orders', partition: 1, offset: 0 },
              { topic: 'refunds', partition: 0, offset: 0 },
            ],
          },
        },
      },
    ])
  })

  it('takes anything but yes for no', async () => {
    for (const answer of ['', 'n', 'yess']) {
      const admin = aBillingGroup()
      const { code, err } = await reset(aTerminal(answer), admin, toStart)
      expect(code).toBe(1)
      expect(err).toContain('nothing was changed')
      expect(admin.resets).toEqual([])
    }
  })

  it('ends with 2 and changes nothing when there is nobody to ask', async () => {
    const admin = aBillingGroup()
    const { code, out, err } = await reset(aFakeIo(), admin, toStart)
    expect(code).toBe(2)
    expect(out).toMatch(/^orders +0 +300 +10 /m)
    expect(err).toContain('hint: --yes does what the plan says')
    expect(admin.resets).toEqual([])
  })

  it('gives one JSON document, and tells in it whether anything was done', async () => {
    for (const [more, code, executed] of [
      [{ dryRun: true }, 0, false],
      [{ yes: true }, 0, true],
      [{}, 2, false],
    ] as const) {
      const admin = aBillingGroup()
      const answer = await reset(
        aFakeIo(),
        admin,
        { kind: 'position', position: 'end' },
        {
          ...more,
          format: 'json',
          topic: ['orders'],
        },
      )
      expect(answer.code).toBe(code)
      expect(JSON.parse(answer.out)).toEqual({
        group: 'billing',
        executed,
        offsets: [
          {
            topic: 'orders',
            partition: 0,
            from: 300,
            to: 1500,
            delta: 1200,
            lag: 0,
            logStartOffset: 10,
            highWatermark: 1500,
            clamped: false,
          },
          expect.objectContaining({ partition: 1, from: 7, to: 7, delta: 0 }) as object,
        ],
      })
      expect(admin.resets.length).toBe(executed ? 1 : 0)
    }
  })

  it('shows whoever is asked the plan before, also when the answer is JSON', async () => {
    const { out, err } = await reset(aTerminal('n'), aBillingGroup(), toStart, { format: 'json' })
    expect(err.indexOf('FROM')).toBeGreaterThanOrEqual(0)
    expect(err.indexOf('FROM')).toBeLessThan(err.indexOf('[y/N]'))
    expect(JSON.parse(out)).toMatchObject({ executed: false })
  })

  it('is refused before anybody is asked while there are members, and says who', async () => {
    const admin = aBillingGroup()
    admin.members = [aMember({ owned: [{ topic: 'orders', partition: 1 }] })]
    const { code, err } = await reset(aTerminal('y'), admin, toStart)
    expect(code).toBe(1)
    expect(err).not.toContain('[y/N]')
    expect(err).toContain('app at 127.0.0.1 (orders/1)')
    const dry = await reset(aFakeIo(), admin, toStart, { dryRun: true })
    expect(dry.code).toBe(0)
    expect(dry.err).toBe('note: billing has 1 member now; it can be reset once they are stopped\n')
  })

  it('has nothing to do when everything is there already', async () => {
    const admin = new FakeGroupAdmin([
      { topic: 'orders', partition: 0, start: 3, end: 9, committed: 9 },
    ])
    const target = { kind: 'position', position: 'end' } as const
    const { code, out } = await reset(aFakeIo(), admin, target, { yes: true })
    expect(code).toBe(0)
    expect(out).toContain('nothing to change')
    expect(admin.resets).toEqual([])
    const none = await reset(aFakeIo(), admin, target, { topic: ['other'] })
    expect(none.out).toBe('nothing to reset: billing has no committed offsets in other\n')
  })

  it('takes offsets from a file, some of them with --topic and --partitions', async () => {
    const admin = aBillingGroup()
    const target: ResetTarget = {
      kind: 'offsets',
      offsets: [
        { topic: 'orders', partition: 0, offset: 20 },
        { topic: 'orders', partition: 1, offset: 1 },
        { topic: 'refunds', partition: 0, offset: 1 },
      ],
    }
    await reset(aFakeIo(), admin, target, { yes: true, topic: ['orders'], partitions: [1] })
    expect(admin.resets[0]?.options.to).toEqual({
      offsets: [{ topic: 'orders', partition: 1, offset: 1 }],
    })
    const none = await reset(aFakeIo(), admin, target, { topic: ['other'], fromFile: 'f.csv' })
    expect(none.code).toBe(2)
    expect(none.err).toContain('error: f.csv has no offsets for other')
  })

  it('goes to where another group is', async () => {
    const admin = aBillingGroup()
    const target: ResetTarget = { kind: 'group', group: 'billing' }
    const { out } = await reset(aFakeIo(), admin, target)
    expect(out).toContain('nothing to change')
    const unknown = await reset(aFakeIo(), admin, { kind: 'group', group: 'audti' })
    expect(unknown.code).toBe(1)
    expect(unknown.err).toContain('did you mean audit?')
  })

  it('makes a group only with --create', async () => {
    const admin = aBillingGroup()
    const target: ResetTarget = { kind: 'position', position: 'end' }
    const without = await reset(aFakeIo(), admin, target, { topic: ['orders'], yes: true }, 'new')
    expect(without.code).toBe(1)
    expect(without.err).toContain('(UNKNOWN_GROUP)')
    const more = { topic: ['orders'], partitions: [0], yes: true, create: true }
    const { code, out } = await reset(aFakeIo(), admin, target, more, 'new')
    expect(code).toBe(0)
    expect(out).toMatch(/^orders +0 +- +1500 +- +0$/m)
    expect(out).toContain('group new made: 1 partition\n')
    expect(admin.commits).toEqual([
      { group: 'new', offsets: [{ topic: 'orders', partition: 0, offset: 1500 }] },
    ])
    const vague = await reset(aFakeIo(), admin, target, { create: true, yes: true }, 'new')
    expect(vague.code).toBe(2)
    expect(vague.err).toContain('which topics are meant')
  })
})
