import type { CancelTimer, Clock } from '../../common/clock.ts'
import { MIB } from '../../common/units.ts'
import type { FileSystem } from '../../fs/file-system.ts'
import { defaultDiskFloor } from './disk-environment.ts'
import type { DiskLogger } from './disk-environment.ts'

/** Appends come back when this much more than the floor is free, so that the switch does not flutter. */
const RESUME_FACTOR = 1.2
const BALLAST_BLOCK_BYTES: number = MIB

/**
 * Watches the free space. Below the floor appends are refused, and come back by themselves. When the disk is all but full the ballast, real bytes set
 * aside, is given up, so that commits, deletes and a clean stop still work (CONTRACT §2.3).
 */
export class DiskSpace {
  readonly #fs: FileSystem
  readonly #directory: string
  readonly #clock: Clock
  readonly #logger: DiskLogger
  readonly #floorBytes: number
  readonly #ballastBytes: number
  readonly #checkMs: number
  #isFull = false
  /** Something of it is on the disk; all of it is. */
  #hasBallast = false
  #isBallastWhole = false
  #cancel: CancelTimer | undefined
  #checking: Promise<void> | undefined
  #isClosed = false
  freeBytes = 0

  constructor(options: {
    readonly fs: FileSystem
    readonly directory: string
    readonly clock: Clock
    readonly logger: DiskLogger
    readonly floorBytes: number
    readonly ballastBytes: number
    readonly checkMs: number
  }) {
    this.#fs = options.fs
    this.#directory = options.directory
    this.#clock = options.clock
    this.#logger = options.logger
    this.#floorBytes = options.floorBytes
    this.#ballastBytes = options.ballastBytes
    this.#checkMs = options.checkMs
  }

  get isFull(): boolean {
    return this.#isFull
  }

  get #ballastPath(): string {
    return `${this.#directory}/ballast`
  }

  async start(): Promise<void> {
    // One that an earlier run has left can be given up too, whole or not: the disk may be full by now.
    this.#hasBallast = (await this.#fs.findStat(this.#ballastPath)) !== undefined
    await this.#check()
    this.#schedule()
  }

  /** Something could not be written for want of space: look now. */
  async noteShortage(): Promise<void> {
    if (this.#hasBallast) await this.#dropBallast()
    await this.#check()
  }

  async close(): Promise<void> {
    this.#isClosed = true
    this.#cancel?.()
    await this.#checking
  }

  #schedule(): void {
    if (this.#isClosed || this.#checkMs === 0) return
    this.#cancel = this.#clock.schedule(this.#checkMs, () => {
      this.#checking = this.#check().then(
        () => this.#schedule(),
        (error: unknown) => {
          this.#logger.warn({ err: error }, 'the free space of the disk could not be read')
          this.#schedule()
        },
      )
    })
  }

  async #check(): Promise<void> {
    const { freeBytes, totalBytes } = await this.#fs.space(this.#directory)
    this.freeBytes = freeBytes
    const floor = Number.isFinite(this.#floorBytes)
      ? this.#floorBytes
      : Math.min(defaultDiskFloor(totalBytes), totalBytes / 2)
    const limit = this.#isFull ? floor * RESUME_FACTOR : floor
    const isFull = freeBytes < limit
    if (isFull !== this.#isFull) {
      this.#isFull = isFull
      const details = { freeBytes, floorBytes: floor }
      if (isFull)
        this.#logger.error(details, 'the disk has too little space left: appends are refused')
      else this.#logger.info(details, 'the disk has space again: appends are taken')
    }
    if (this.#isFull && freeBytes < this.#ballastBytes && this.#hasBallast)
      await this.#dropBallast()
    if (!this.#isFull && freeBytes > floor + 2 * this.#ballastBytes) await this.#makeBallast()
  }

  /** Without it the broker runs too: a failure is worth a warning. */
  async #makeBallast(): Promise<void> {
    if (this.#ballastBytes === 0 || this.#isBallastWhole) return
    try {
      const stat = await this.#fs.findStat(this.#ballastPath)
      if (stat?.sizeBytes !== this.#ballastBytes) await this.#writeBallast(stat !== undefined)
      this.#isBallastWhole = true
      this.#hasBallast = true
    } catch (error) {
      this.#logger.warn({ err: error }, 'no ballast could be set aside')
    }
  }

  async #writeBallast(exists: boolean): Promise<void> {
    if (exists) await this.#fs.remove(this.#ballastPath)
    const file = await this.#fs.open(this.#ballastPath, 'create')
    try {
      // Not zeros: a file system that compresses would set nothing aside.
      const block = Buffer.alloc(BALLAST_BLOCK_BYTES)
      for (let i = 0; i < block.length; i++) block[i] = Math.imul(i, 0x9e3779b1) >>> 24
      for (let at = 0; at < this.#ballastBytes; at += block.length) {
        await file.write([block.subarray(0, Math.min(block.length, this.#ballastBytes - at))], at)
      }
    } finally {
      this.#hasBallast = true
      await file.close()
    }
  }

  async #dropBallast(): Promise<void> {
    this.#hasBallast = false
    this.#isBallastWhole = false
    await this.#fs.remove(this.#ballastPath)
    this.#logger.warn({}, 'the disk is all but full: the ballast file has been given up')
  }
}
