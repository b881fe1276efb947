import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { CancelTimer, Clock } from '../common/clock.ts'
import { MIB, SECOND_MS } from '../common/units.ts'

/** What the process says of itself. */
export interface ProcessMemory {
  /** CPU time used so far. */
  cpuMs(): number
  /** Bytes that the heap takes from the system, used or not. */
  heapBytes(): number
  /** Collects everything: some tens of milliseconds. */
  collect(): void
}

const LOOK_MS: number = 3 * SECOND_MS
/** Less than this share of a core is idle. */
const IDLE_SHARE = 0.05
/** What has to be there beyond what was left the last time. */
const WORTH_BYTES: number = 32 * MIB

/**
 * Gives memory back once a broker has nothing to do. With the heap allowed to grow to five times what is alive (see serve.ts), a burst leaves it there until the
 * next one: after a million delayed records 123 MiB more than before, of which 40 were in use. Two collections, in a pause, so that nobody waits for them.
 */
export class MemoryTrim {
  readonly #clock: Clock
  readonly #memory: ProcessMemory
  #cpuMs: number
  #leftBytes: number
  /** The first collection frees what is in pages; only the next one after it gives the pages back. */
  #isHalfDone = false
  #cancel: CancelTimer | undefined

  constructor(clock: Clock, memory: ProcessMemory) {
    this.#clock = clock
    this.#memory = memory
    this.#cpuMs = memory.cpuMs()
    this.#leftBytes = memory.heapBytes()
  }

  start(): void {
    this.#cancel = this.#clock.schedule(LOOK_MS, () => {
      this.#look()
      this.start()
    })
  }

  stop(): void {
    this.#cancel?.()
  }

  #look(): void {
    const before = this.#cpuMs
    this.#cpuMs = this.#memory.cpuMs()
    if (this.#cpuMs - before > LOOK_MS * IDLE_SHARE) return
    if (!this.#isHalfDone && this.#memory.heapBytes() - this.#leftBytes < WORTH_BYTES) return
    this.#isHalfDone = !this.#isHalfDone
    this.#memory.collect()
    this.#leftBytes = this.#memory.heapBytes()
    this.#cpuMs = this.#memory.cpuMs()
  }
}

/** Of this process. The collector is not to be had without its flag, which may be set at any time before it is asked for. */
export function processMemory(): ProcessMemory {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void // What the flag puts there.
  return {
    cpuMs: () => {
      const { user, system } = process.cpuUsage()
      return (user + system) / 1000
    },
    heapBytes: () => process.memoryUsage().heapTotal,
    collect: () => collect(),
  }
}
