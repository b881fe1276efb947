import { describe, expect, it, vi } from 'vitest'
import { GroupRun } from '../../src/cli/group-tail.ts'
import type { TailBatch } from '../../src/cli/group-tail.ts'
import { Interrupt } from '../../src/cli/io.ts'
import { Output } from '../../src/cli/output.ts'
import { reportError } from '../../src/cli/report-error.ts'
import { compileOutput } from '../../src/cli/tail-output.ts'
import type { TailOutputOptions } from '../../src/cli/tail-output.ts'
import { MillraceError } from '../../src/client/index.ts'
import type { Batch, BatchContext, HandlerContext, ReceivedRecord } from '../../src/client/index.ts'
import { BatchBuilder } from '../../src/record/batch-builder.ts'
import { RecordCursor } from '../../src/record/record-cursor.ts'
import { toOffset } from '../../src/common/offset.ts'
import { aFakeIo, runCommand } from '../support/cli-io.ts'
import type { FakeIo } from '../support/cli-io.ts'

type AnyListener = (fact: never) => unknown

/** A member whose batches the test hands over, and that knows what counts as finished. */
class FakeConsumer {
  readonly #batches: readonly TailBatch[]
  readonly #ends: readonly number[]
  readonly listeners: Map<string, AnyListener> = new Map()
  readonly lost: AbortController = new AbortController()
  /** The end of what is finished, as the consumer would commit it. */
  finished = 0
  failure: Error | undefined
  /** What the command ends it with. */
  signal: AbortSignal | undefined
  /** True: goes on until then. */
  follows = false

  constructor(batches: readonly (readonly string[])[]) {
    let base = 0
    this.#ends = batches.map((values) => (base += values.length))
    this.#batches = batches.map((values, i) => aBatch((this.#ends[i] ?? 0) - values.length, values))
  }

  on(event: string, listener: AnyListener): () => void {
    this.listeners.set(event, listener)
    return () => this.listeners.delete(event)
  }

  async runBatches(
    handler: (batch: Batch<Uint8Array, Uint8Array>, context: BatchContext) => Promise<void> | void,
  ): Promise<void> {
    for (const [i, batch] of this.#batches.entries()) {
      const context: BatchContext = {
        signal: this.lost.signal,
        done: (offset) => {
          this.finished = Math.max(this.finished, offset)
        },
      }
      // The command looks at these fields and no others.
      await handler(batch as Batch<Uint8Array, Uint8Array>, context)
      if (this.lost.signal.aborted) return
      this.finished = this.#ends[i] ?? 0
    }
    if (this.failure !== undefined) throw this.failure
    if (!this.follows) return
    await new Promise<void>((resolve) => {
      this.signal?.addEventListener('abort', () => resolve(), { once: true })
    })
  }

  async run(
    handler: (
      record: ReceivedRecord<Uint8Array, Uint8Array>,
      context: HandlerContext,
    ) => Promise<void> | void,
  ): Promise<void> {
    for (const batch of this.#batches) {
      const cursor = batch.cursor()
      while (cursor.next()) {
        const record = {
          topic: batch.topic,
          partition: batch.partition,
          offset: toOffset(cursor.offset),
          timestamp: cursor.timestampMs,
          key: Buffer.from('k'),
          value: cursor.bytes.subarray(cursor.valueStart, cursor.valueEnd),
          headers: { x: '1' },
        }
        await handler(record, { signal: this.lost.signal })
        this.finished = cursor.offset + 1
      }
    }
  }
}

function aBatch(baseOffset: number, values: readonly string[]): TailBatch {
  const builder = new BatchBuilder({ maxBytes: 1 << 20 })
  for (const value of values) builder.tryAppend(undefined, value, 1_767_225_600_000, undefined)
  const bytes = builder.finish()
  return {
    topic: 'orders',
    partition: 2,
    cursor: () => {
      const cursor = new RecordCursor()
      cursor.reset(bytes, 0)
      return new Proxy(cursor, {
        get: (target, name) => {
          const value: unknown = Reflect.get(target, name, target)
          if (name === 'offset') return Number(value) + baseOffset
          return typeof value === 'function' ? (value.bind(target) as unknown) : value
        },
      })
    },
  }
}

interface RunShape extends Partial<TailOutputOptions> {
  readonly idleMs?: number
  readonly io?: FakeIo
}

async function perform(
  consumer: FakeConsumer,
  shape: RunShape = {},
): Promise<{
  readonly io: FakeIo
  readonly count: number
  readonly aborted: boolean
}> {
  const io = shape.io ?? aFakeIo()
  using interrupt = new Interrupt(io)
  const options = {
    ignoreCase: false,
    header: [],
    null: false,
    metaOnly: false,
    ...(shape.exec === undefined ? { format: 'raw' } : {}),
    ...shape,
  }
  const out = new Output(io.stdout, () => interrupt.stop())
  const run = new GroupRun(
    io,
    out,
    compileOutput(io, options),
    { group: 'billing', exec: shape.exec, idleMs: shape.idleMs },
    interrupt,
  )
  consumer.signal = run.signal
  try {
    await run.perform(consumer)
  } finally {
    run.end()
    await out.finish()
  }
  await new Promise((resolve) => setImmediate(resolve))
  return { io, count: run.count, aborted: run.signal.aborted }
}

/** Sees each write to stdout before it happens, or in place of it. */
function interceptWrites(
  io: FakeIo,
  instead: (pass: () => boolean, callback: () => void) => boolean,
): void {
  const write = io.stdout.write.bind(io.stdout) as (...args: readonly unknown[]) => boolean
  io.stdout.write = (...args: readonly unknown[]) =>
    instead(
      () => write(...args),
      () => {
        const callback = args.at(-1)
        if (typeof callback === 'function') (callback as () => void)()
      },
    )
}

describe('tail as a member of a group', () => {
  it('prints batches, and each counts as finished once stdout has taken it', async () => {
    const consumer = new FakeConsumer([['a', 'b'], ['c']])
    const io = aFakeIo()
    const taken: number[] = []
    interceptWrites(io, (pass) => {
      taken.push(consumer.finished)
      return pass()
    })
    expect((await perform(consumer, { io })).count).toBe(3)
    expect(io.out()).toBe('a\nb\nc\n')
    expect(taken).toEqual([0, 2])
    expect(consumer.finished).toBe(3)
  })

  it('finishes nothing that was not taken when the reader leaves', async () => {
    const consumer = new FakeConsumer([['a'], ['b', 'c'], ['d']])
    const io = aFakeIo()
    let writes = 0
    interceptWrites(io, (pass, callback) => {
      if (++writes === 1) return pass()
      io.stdout.emit('error', Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
      callback()
      return false
    })
    const { aborted } = await perform(consumer, { io })
    expect(aborted).toBe(true)
    expect(consumer.finished).toBe(1)
  })

  it('with -n finishes the records that it has shown, in the middle of a batch too', async () => {
    const consumer = new FakeConsumer([['a', 'b'], ['c', 'd', 'e'], ['f']])
    const { io, aborted } = await perform(consumer, { num: 4 })
    expect(io.out()).toBe('a\nb\nc\nd\n')
    expect(consumer.finished).toBe(4)
    expect(aborted).toBe(true)
  })

  it('finishes what a filter leaves out, up to the last one that is shown', async () => {
    const consumer = new FakeConsumer([['a', 'x', 'b', 'x', 'c']])
    const { io } = await perform(consumer, { grep: '[abc]', num: 2 })
    expect(io.out()).toBe('a\nb\n')
    expect(consumer.finished).toBe(3)
    const other = new FakeConsumer([['x', 'y'], ['z']])
    expect((await perform(other, { grep: 'a' })).count).toBe(0)
    expect(other.finished).toBe(3)
  })

  it('with --exec finishes each record when its command has ended well', async () => {
    const consumer = new FakeConsumer([['a', 'b', 'bad', 'c']])
    const io = aFakeIo({ env: { PATH: process.env['PATH'] ?? '' } })
    const error = await perform(consumer, {
      io,
      exec: 'read -r v || true; echo "$MILLRACE_OFFSET $v"; test "$v" != bad',
    }).catch((failure: unknown) => failure)
    expect(reportError(io, error)).toBe(1)
    expect(consumer.finished).toBe(2)
    await vi.waitFor(() => expect(io.out()).toBe('0 a\n1 b\n2 bad\n'))
    expect(io.err()).toMatch(/ended with code 1 at orders\/2:2$/m)
    expect(io.err()).toContain('hint: the same command line starts again at that record')
  })

  it('does not finish the record whose command a signal has cut short', async () => {
    const consumer = new FakeConsumer([['a', 'b', 'c']])
    const io = aFakeIo({ env: { PATH: process.env['PATH'] ?? '' } })
    const done = perform(consumer, {
      io,
      exec: 'echo $MILLRACE_OFFSET >&2; test $MILLRACE_OFFSET != 1 || exec sleep 60',
    })
    await vi.waitFor(() => expect(io.err()).toBe('0\n1\n'), { timeout: 10_000 })
    io.signals.emit('SIGINT')
    await done
    expect(consumer.finished).toBe(1)
  })

  it('with --exec gives key, place and value to commands, after filters, -n of them', async () => {
    const consumer = new FakeConsumer([['a', 'x', 'b'], ['c']])
    const io = aFakeIo({ env: { PATH: process.env['PATH'] ?? '' } })
    const { count, aborted } = await perform(consumer, {
      io,
      grep: '[abc]',
      header: ['x=1'],
      key: 'k',
      num: 2,
      exec: 'echo "$MILLRACE_TOPIC/$MILLRACE_PARTITION:$MILLRACE_OFFSET $MILLRACE_KEY $(cat)"',
    }).catch(() => ({ count: -1, aborted: false }))
    expect(io.out()).toBe('orders/2:0 k a\norders/2:2 k b\n')
    // The fake goes on where a consumer would have stopped: what comes then is not touched.
    expect({ count, aborted }).toEqual({ count: 2, aborted: true })
    expect(consumer.finished).toBe(3)
  })

  it('leaves the group when nothing has come for --idle', async () => {
    const consumer = new FakeConsumer([])
    consumer.follows = true
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const done = perform(consumer, { idleMs: 500 })
      // Joining takes its time, and does not count.
      await vi.advanceTimersByTimeAsync(2_000)
      const assigned = consumer.listeners.get('assigned') as (list: readonly object[]) => void
      assigned([{ topic: 'orders', partition: 0 }])
      await vi.advanceTimersByTimeAsync(499)
      expect(consumer.signal?.aborted).toBe(false)
      await vi.advanceTimersByTimeAsync(1)
      expect(consumer.signal?.aborted).toBe(true)
      await done
      expect(vi.getTimerCount()).toBe(0)
    } finally {
      vi.useRealTimers()
    }
  })

  it('tells people why nothing happens when others have all partitions', async () => {
    for (const terminal of [true, false]) {
      const io = aFakeIo({ terminal })
      const consumer = new FakeConsumer([])
      consumer.follows = true
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
      try {
        const done = perform(consumer, { io })
        await vi.advanceTimersByTimeAsync(60_000)
        io.signals.emit('SIGINT')
        await done
      } finally {
        vi.useRealTimers()
      }
      expect(io.err()).toBe(
        terminal
          ? 'billing: waits for partitions; `millrace group describe billing` shows who has them\n'
          : '',
      )
    }
  })

  it('tells people what it reads, and everybody what comes again or is left out', async () => {
    for (const terminal of [true, false]) {
      const io = aFakeIo({ terminal })
      const consumer = new FakeConsumer([['a']])
      await perform(consumer, { io })
      const tell = (event: string, fact: unknown): unknown =>
        (consumer.listeners.get(event) as (fact: unknown) => unknown)(fact)
      const partitions = [0, 1, 3].map((partition) => ({ topic: 'orders', partition }))
      tell('assigned', partitions)
      tell('revoked', partitions.slice(2))
      tell('lost', partitions)
      tell('reset', {
        topic: 'orders',
        partition: 1,
        from: toOffset(3),
        to: toOffset(9),
        logStartOffset: toOffset(9),
        highWatermark: toOffset(12),
      })
      tell('error', new MillraceError('COMMIT_TIMEOUT', 'no answer'))
      await new Promise((resolve) => setImmediate(resolve))
      const talk = 'billing: reads orders/0-1,3\nbilling: gives up orders/3\n'
      expect(io.err()).toBe(
        `${terminal ? talk : ''}billing: lost orders/0-1,3: the broker has not heard of this member in time; it joins anew\n` +
          'billing: orders/1 goes on at 9: offset 3 is outside [9, 12]\n' +
          'billing: a commit failed, the next one makes up for it: no answer (COMMIT_TIMEOUT)\n',
      )
    }
  })

  it('says how to go on when an offset is gone', async () => {
    const consumer = new FakeConsumer([])
    consumer.failure = new MillraceError('OFFSET_OUT_OF_RANGE', 'offset 3 is gone')
    const io = aFakeIo()
    const error = await perform(consumer, { io }).catch((failure: unknown) => failure)
    expect(reportError(io, error)).toBe(1)
    expect(io.err()).toContain('hint: --on-lost start')
  })
})

describe('the command line of tail -g and group, without a broker', () => {
  it.each([
    [['tail'], "missing required argument 'topic'", '--pattern'],
    [['tail', 'x', '-g', 'g', '-p', '0'], '--partitions and --group contradict', 'the group says'],
    [['tail', 'x', '-g', 'g', '--until', 'end'], '--until and --group', '--no-follow'],
    [['tail', 'x', '-g', 'g', '-o', ':end'], '-o :end is a range', '--no-follow'],
    [['tail', 'x', '-g', 'g', '-o', '@-2h:-1h'], '-o @-2h:-1h is a range', undefined],
    [['tail', 'x', '-g', 'g', '--offsets'], '--offsets and --group', 'group describe g'],
    [['tail', 'x', '-g', 'g', '-o', '1', '--from', '2'], 'contradict each other', 'one is enough'],
    [['tail', 'x', '-g', 'g', '-o', 'group:h'], '-o group:h and --group', 'group reset g --to'],
    [['tail', 'x', '-g', 'g', '-o', 'soon'], '"soon" is not a position', undefined],
    [['tail', 'x', '-g', 'g', '--on-lost', 'soon'], '"soon" is not a position', undefined],
    [['tail', 'x', '-g', 'g', '--commit', 'never'], '--commit never is none of', undefined],
    [['tail', '-g', 'g', '--pattern', '('], '--pattern ( is no regular expression', undefined],
    [['tail', 'x', '-g', 'g', '--pattern', 'y'], '--pattern stands in place', undefined],
    [['tail', 'x', '-g', 'g', '--exec', 'cat', '-f', 'raw'], '--exec and --format', undefined],
    [['tail', 'x', '--pattern', 'y'], '--pattern stands in place of names', undefined],
    [['tail', 'x', '-o', 'committed'], '-o committed needs a group', '-o group:NAME'],
    [['tail', 'x', '-o', 'group:g:end', '--until', '5'], '--until contradicts', undefined],
    [['tail', 'x', '--from', 'start'], '--from goes with --group', 'try -o'],
    [['tail', 'x', '--instance-id', 'a'], '--instance-id goes with --group', undefined],
    [['group', 'reset', 'g'], 'where to?', '--to POSITION'],
    [['group', 'reset', 'g', '--to', 'end', '--shift', '1'], 'contradict each other', undefined],
    [['group', 'reset', 'g', '--shift', 'far'], '--shift far is no whole number', undefined],
    [['group', 'reset', 'g', '--to', 'soon'], '"soon" is not a position', undefined],
    [
      ['group', 'seek', 'g', '--to', 'end', '-p', '0'],
      '--partitions goes with one --topic',
      'once',
    ],
    [['group', 'delete-offsets', 'g'], '--topic', undefined],
    [['group', 'list', '--state', 'dead'], '--state dead is none of empty, assigning', undefined],
    [['group', 'list', '--match', '('], '--match ( is no regular expression', undefined],
    [['group', 'export', 'g', '--format', 'xml'], '--format xml is none of json, csv', undefined],
    [
      ['group', 'describe', 'g', '--watch', 'often'],
      '--watch "often" is not a duration',
      undefined,
    ],
    [['group', 'rest', 'g'], "unknown command 'rest'", 'did you mean reset?'],
  ])('answers %j with one error line and code 2', async (argv, message, hint) => {
    const { code, out, err } = await runCommand(argv)
    expect(err).toContain(message)
    expect(code).toBe(2)
    expect(out).toBe('')
    expect(err).toMatch(/^error: /)
    if (hint !== undefined) expect(err).toContain(hint)
    expect(err).not.toMatch(/^ +at /m)
  })

  it('says which file of offsets is not there, and which line is wrong', async () => {
    const missing = await runCommand(['group', 'reset', 'g', '--from-file', '/nowhere/x'])
    expect(missing.code).toBe(1)
    expect(missing.err).toContain('error: /nowhere/x cannot be read: ENOENT')
    const bad = await runCommand(['group', 'reset', 'g', '--from-file', '-'], { input: 'a,b\n' })
    expect(bad.code).toBe(2)
    expect(bad.err).toContain('error: stdin, line 1 has 2 columns where 3 belong')
  })

  it('has a page about groups', async () => {
    const { code, out } = await runCommand(['help', 'groups'])
    expect(code).toBe(0)
    expect(out).toContain('At least once.')
    expect(Math.max(...out.split('\n').map((line) => line.length))).toBeLessThanOrEqual(104)
  })
})
