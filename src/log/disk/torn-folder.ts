import { findSystemCode } from '../../common/errors.ts'
import type { FileSystem } from '../../fs/file-system.ts'
import { MIB } from '../../common/units.ts'
import type { ScanWindow } from '../../segment/segment-scan.ts'

/** All that is kept, and of one tail. The oldest goes first. */
const MOST_BYTES: number = 64 * MIB
const MOST_TAIL_BYTES: number = 16 * MIB

/**
 * `torn/`: what recovery cut off, for people who want to look. A file's name says incarnation, topic id, partition and offset; its first
 * byte stood where that offset was expected.
 */
export class TornFolder {
  readonly #fs: FileSystem
  readonly #path: string
  readonly #incarnation: number

  constructor(fs: FileSystem, directory: string, incarnation: number) {
    this.#fs = fs
    this.#path = `${directory}/torn`
    this.#incarnation = incarnation
  }

  /** Copies [from, to) of what the window looks at: durable when it resolves. */
  async keep(name: string, window: ScanWindow, from: number, to: number): Promise<void> {
    if ((await this.#fs.findStat(this.#path)) === undefined) {
      await this.#fs.makeDirectory(this.#path)
      await this.#fs.syncDirectory(this.#path.slice(0, this.#path.lastIndexOf('/')))
    }
    const path = `${this.#path}/${String(this.#incarnation).padStart(10, '0')}-${name}`
    if ((await this.#fs.findStat(path)) !== undefined) await this.#fs.remove(path)
    const file = await this.#fs.open(path, 'create')
    try {
      const end = Math.min(to, from + MOST_TAIL_BYTES)
      let position = from
      while (position < end) {
        const have = Math.min(await window.ensure(position, 1), end - position)
        if (have <= 0) break
        const at = window.at(position)
        await file.write([window.bytes.subarray(at, at + have)], position - from)
        position += have
      }
      await file.sync()
    } finally {
      await file.close()
    }
    await this.#removeOldest()
    await this.#fs.syncDirectory(this.#path)
  }

  /** Partitions recover side by side, and each tidies up. */
  async #removeIfThere(path: string): Promise<void> {
    try {
      await this.#fs.remove(path)
    } catch (error) {
      if (findSystemCode(error) !== 'ENOENT') throw error
    }
  }

  async #removeOldest(): Promise<void> {
    const names = (await this.#fs.list(this.#path)).sort().toReversed()
    let bytes = 0
    for (const name of names) {
      bytes += (await this.#fs.findStat(`${this.#path}/${name}`))?.sizeBytes ?? 0
      if (bytes > MOST_BYTES) await this.#removeIfThere(`${this.#path}/${name}`)
    }
  }
}
