import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import type { GroupEvent } from './group-checker.ts'

/** What a member writes down of itself. Times are of the machine's monotonic clock. */
export type MemberEvent =
  | { readonly type: 'started' | 'closed'; readonly atMs: number }
  | {
      readonly type: 'assigned' | 'revoked' | 'lost'
      readonly atMs: number
      readonly partitions: readonly string[]
    }
  | {
      readonly type: 'processed'
      readonly atMs: number
      readonly partition: string
      readonly offset: number
    }
  | {
      readonly type: 'committed'
      readonly atMs: number
      readonly answeredMs: number
      readonly partition: string
      readonly offset: number
    }
  | { readonly type: 'refused'; readonly atMs: number; readonly code: string }

export interface MemberProcessOptions {
  readonly name: string
  readonly server: string
  readonly group: string
  readonly kind: string
  /** URL of the compiled program. */
  readonly program: string
  /** Where its stdout is kept. */
  readonly folder: string
}

/** CLOCK_MONOTONIC, as the members read it. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}

/** `group-member.ts` as a process. Call `start` inside a test: it is killed when that ends. */
export class MemberProcess {
  readonly name: string
  readonly startMs: number = monotonicMs()
  /** Resolves to the exit code; null after a SIGKILL. */
  readonly ended: Promise<number | null>
  readonly #child: ChildProcess
  readonly #file: number
  readonly #events: MemberEvent[] = []
  /** When it was stopped, and went on. */
  readonly pauses: { readonly fromMs: number; untilMs: number }[] = []
  readonly #owned = new Set<string>()
  #readBytes = 0
  #half = ''
  #state: 'running' | 'stopped' | 'leaving' | 'killed' | 'ended' = 'running'
  killedMs: number = Infinity
  stderr: string = ''

  static start(options: MemberProcessOptions): MemberProcess {
    const path = join(options.folder, `${options.name}.jsonl`)
    const output = openSync(path, 'a')
    const { server, group, kind, program } = options
    const child = spawn(process.execPath, [fileURLToPath(program), server, group, kind], {
      stdio: ['ignore', output, 'pipe'],
      env: { PATH: process.env['PATH'] ?? '' },
    })
    closeSync(output)
    const member = new MemberProcess(options.name, child, openSync(path, 'r'))
    onTestFinished(() => {
      child.kill('SIGKILL')
      closeSync(member.#file)
    })
    return member
  }

  private constructor(name: string, child: ChildProcess, file: number) {
    this.name = name
    this.#child = child
    this.#file = file
    child.stderr?.setEncoding('utf8').on('data', (piece: string) => {
      this.stderr += piece
    })
    this.ended = once(child, 'close').then(([code]: unknown[]) => {
      if (this.#state !== 'killed') this.#state = 'ended'
      return typeof code === 'number' ? code : null
    })
  }

  get state(): 'running' | 'stopped' | 'leaving' | 'killed' | 'ended' {
    return this.#state
  }

  /** It has come so far that a SIGTERM makes it leave, rather than die of it. */
  get hasStarted(): boolean {
    return this.events()[0]?.type === 'started'
  }

  kill(): void {
    this.killedMs = monotonicMs()
    this.#state = 'killed'
    this.#child.kill('SIGKILL')
  }

  stop(): void {
    this.#state = 'stopped'
    this.#child.kill('SIGSTOP')
    this.pauses.push({ fromMs: monotonicMs(), untilMs: Infinity })
  }

  goOn(): void {
    this.#state = 'running'
    const pause = this.pauses.at(-1)
    if (pause !== undefined) pause.untilMs = monotonicMs()
    this.#child.kill('SIGCONT')
  }

  leave(): void {
    this.#state = 'leaving'
    this.#child.kill('SIGTERM')
  }

  /** What it has written so far. */
  events(): readonly MemberEvent[] {
    const piece = Buffer.alloc(1 << 16)
    for (;;) {
      const length = readSync(this.#file, piece, 0, piece.length, this.#readBytes)
      if (length === 0) return this.#events
      this.#readBytes += length
      // What it writes is ASCII, so a piece may end anywhere.
      const lines = (this.#half + piece.toString('latin1', 0, length)).split('\n')
      this.#half = lines.pop() ?? ''
      for (const line of lines) this.#take(JSON.parse(line) as MemberEvent) // Our own program wrote it.
    }
  }

  #take(event: MemberEvent): void {
    this.#events.push(event)
    if (event.type === 'assigned') for (const name of event.partitions) this.#owned.add(name)
    if (event.type !== 'revoked' && event.type !== 'lost') return
    for (const name of event.partitions) this.#owned.delete(name)
  }

  /** What it says that it owns now; nothing when it cannot do anything with it. */
  owned(): ReadonlySet<string> {
    this.events()
    return this.#state === 'running' ? this.#owned : new Set()
  }

  #wasStopped(afterMs: number, beforeMs: number): boolean {
    return this.pauses.some(({ fromMs, untilMs }) => fromMs > afterMs && untilMs < beforeMs)
  }

  /** All that it did, in the checker's words. */
  history(): GroupEvent[] {
    const history: GroupEvent[] = []
    const tenures = new Map<string, { fromMs: number; lastMs: number; first: number | undefined }>()
    const end = (partition: string, atMs: number | undefined): void => {
      const tenure = tenures.get(partition)
      if (tenure === undefined) return
      tenures.delete(partition)
      const { fromMs, lastMs, first } = tenure
      // Without a word of its own, what it had ends with the last that it did with it: it may have been told late, or not at all.
      const untilMs = atMs ?? lastMs
      history.push({ type: 'owned', client: this.name, partition, fromMs, untilMs })
      history.push({
        type: 'granted',
        atMs: fromMs,
        memberId: this.name,
        memberEpoch: 0,
        partition,
        // Where it began is what it found committed.
        committed: first ?? Infinity,
      })
    }
    let lastEventMs = this.startMs
    for (const event of this.events()) {
      if (event.type === 'assigned') {
        for (const partition of event.partitions) {
          end(partition, undefined)
          tenures.set(partition, { fromMs: event.atMs, lastMs: event.atMs, first: undefined })
        }
      } else if (event.type === 'revoked') {
        for (const partition of event.partitions) end(partition, event.atMs)
      } else if (event.type === 'lost') {
        for (const partition of event.partitions) end(partition, undefined)
      } else if (event.type === 'processed') {
        const { partition, offset, atMs } = event
        const tenure = tenures.get(partition)
        if (tenure === undefined) {
          // Nobody gave it to this member (any more): an interval of its own, for the checker to see.
          history.push({ type: 'owned', client: this.name, partition, fromMs: atMs, untilMs: atMs })
        } else {
          // What a process had in its hand when it was stopped it finishes when it goes on: that is no claim to the partition.
          if (!this.#wasStopped(lastEventMs, atMs)) tenure.lastMs = atMs
          tenure.first ??= offset
        }
        history.push({ type: 'processed', partition, from: offset, to: offset + 1 })
      } else if (event.type === 'committed') {
        history.push({ ...event, memberId: this.name, memberEpoch: 0 })
      }
      lastEventMs = event.atMs
    }
    for (const [partition, { lastMs }] of tenures) {
      // Until it was killed, unless it had been stopped since: then its session may have been over.
      const isSure = this.killedMs !== Infinity && this.pauses.every((p) => p.untilMs < lastMs)
      end(partition, isSure ? this.killedMs : undefined)
    }
    return history
  }
}
