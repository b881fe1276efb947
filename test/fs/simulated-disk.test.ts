import type { File } from '../../src/fs/file-system.ts'
import type { CrashOptions } from '../../src/fs/simulated-disk.ts'
import { findSystemCode } from '../../src/common/errors.ts'
import { SeededRandom } from '../../src/common/random.ts'
import { readWhole, replaceFile } from '../../src/fs/file-system.ts'
import { MemoryFileSystem } from '../../src/fs/memory-file-system.ts'
import * as fc from 'fast-check'
import { describe, expect, it } from 'vitest'

const MANY = 300

/** The different outcomes, sorted, that `look` finds over many power cuts at one point. */
function outcomes(
  fs: MemoryFileSystem,
  look: (after: MemoryFileSystem) => string,
  options: CrashOptions = {},
  index: number = fs.journalLength,
): string[] {
  const seen = new Set<string>()
  for (let seed = 0; seed < MANY; seed++) {
    seen.add(look(fs.crashAt(index, new SeededRandom(seed), options)))
  }
  return [...seen].sort()
}

const names = (after: MemoryFileSystem): string => after.files().join(' ')
const contentOf =
  (path: string) =>
  (after: MemoryFileSystem): string =>
    after.contentOf(path)?.toString('latin1') ?? '(none)'

async function write(fs: MemoryFileSystem, path: string, text: string): Promise<File> {
  const file = await fs.open(path, 'create')
  await file.write([Buffer.from(text)], 0)
  return file
}

/** Everything there is, as text: for comparing two disks. */
function dump(fs: MemoryFileSystem): string {
  return fs
    .files()
    .map((path) => `${path}=${fs.contentOf(path)?.toString('hex')}`)
    .join('\n')
}

describe('after a power cut', () => {
  it('keeps a synced file under a synced name, always', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', 'content')
    await file.sync()
    await fs.syncDirectory('/')
    expect(outcomes(fs, contentOf('/a'))).toEqual(['content'])
  })

  it('may lose a synced file whose name was not synced', async () => {
    const fs = new MemoryFileSystem()
    await (await write(fs, '/a', 'content')).sync()
    expect(outcomes(fs, contentOf('/a'))).toEqual(['(none)', 'content'])
  })

  it('may lose a file with a synced name whose folder has none', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/d/e')
    await (await write(fs, '/d/e/a', 'content')).sync()
    await fs.syncDirectory('/d/e')
    await fs.syncDirectory('/')
    expect(outcomes(fs, contentOf('/d/e/a'))).toEqual(['(none)', 'content'])
    await fs.syncDirectory('/d')
    expect(outcomes(fs, contentOf('/d/e/a'))).toEqual(['content'])
  })

  it('may lose or keep the content of a file that has only its name', async () => {
    const fs = new MemoryFileSystem()
    await write(fs, '/a', 'abc')
    await fs.syncDirectory('/')
    const found = outcomes(fs, contentOf('/a'))
    expect(found).toContain('')
    expect(found).toContain('abc')
    // The size has landed before the data: zeros, and sometimes what was in the block before.
    expect(found).toContain('\0\0\0')
    expect(found.length).toBeGreaterThan(3)
    for (const content of found) expect(content.length === 0 || content.length === 3).toBe(true)
  })

  it('tears a write only at sector borders', async () => {
    for (const sectorBytes of [512, 4096] as const) {
      const fs = new MemoryFileSystem()
      const file = await fs.open('/a', 'create')
      await file.write([Buffer.alloc(3 * 4096, 'o')], 0)
      await file.sync()
      await fs.syncDirectory('/')
      await file.write([Buffer.alloc(10_000, 'n')], 100)
      const patterns = outcomes(
        fs,
        (after) => {
          const content = after.contentOf('/a')
          if (content === undefined) return 'lost'
          expect(content.length).toBe(3 * 4096)
          let pattern = ''
          for (let at = 0; at < content.length; at += sectorBytes) {
            const from = Math.max(at, 100)
            const sector = content.subarray(from, Math.min(at + sectorBytes, 10_100))
            if (sector.length > 0) pattern += String.fromCharCode(sector[0] ?? 0)
            if (sector.some((byte) => byte !== sector[0])) pattern += '!'
          }
          expect(content.subarray(0, 100).every((byte) => byte === 0x6f)).toBe(true)
          expect(content.subarray(10_100).every((byte) => byte === 0x6f)).toBe(true)
          return pattern
        },
        { sectorBytes },
      )
      expect(patterns.filter((pattern) => pattern.includes('!'))).toEqual([])
      // All, nothing, a torn end, and a hole before a sector that made it.
      expect(patterns.some((pattern) => /^n+$/.test(pattern))).toBe(true)
      expect(patterns.some((pattern) => /^o+$/.test(pattern))).toBe(true)
      expect(patterns.some((pattern) => /^n+o+$/.test(pattern))).toBe(true)
      expect(patterns.some((pattern) => /o+n/.test(pattern))).toBe(true)
    }
  })

  it('lets later writes land without earlier ones', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '..')
    await file.sync()
    await fs.syncDirectory('/')
    await file.write([Buffer.from('1')], 0)
    await file.write([Buffer.from('2')], 1)
    expect(outcomes(fs, contentOf('/a'))).toEqual(['..', '.2', '1.', '12'])
  })

  it('may or may not have truncated', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '123456')
    await file.sync()
    await fs.syncDirectory('/')
    await file.truncate(2)
    expect(outcomes(fs, contentOf('/a'))).toEqual(['12', '123456'])
    await file.sync()
    expect(outcomes(fs, contentOf('/a'))).toEqual(['12'])
  })

  it('keeps the order of operations in a folder', async () => {
    const fs = new MemoryFileSystem()
    for (const path of ['/1', '/2', '/3']) await fs.open(path, 'create')
    await fs.remove('/1')
    expect(outcomes(fs, names)).toEqual(['', '/1', '/1 /2', '/1 /2 /3', '/2 /3'])
  })

  it('keeps no order of names when asked to', async () => {
    const fs = new MemoryFileSystem()
    for (const path of ['/1', '/2', '/3']) await fs.open(path, 'create')
    expect(outcomes(fs, names, { names: 'independent' })).toHaveLength(8)
  })

  it('keeps folders independent of each other', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/c')
    await fs.makeDirectory('/d')
    await fs.syncDirectory('/')
    await fs.open('/c/1', 'create')
    await fs.open('/d/2', 'create')
    expect(outcomes(fs, names)).toEqual(['', '/c/1', '/c/1 /d/2', '/d/2'])
    await fs.syncDirectory('/d')
    expect(outcomes(fs, names)).toEqual(['/c/1 /d/2', '/d/2'])
  })

  it('brings a removed name back, until its folder is synced', async () => {
    const fs = new MemoryFileSystem()
    await (await write(fs, '/a', 'x')).sync()
    await fs.syncDirectory('/')
    await fs.remove('/a')
    expect(outcomes(fs, contentOf('/a'))).toEqual(['(none)', 'x'])
    await fs.syncDirectory('/')
    expect(outcomes(fs, names)).toEqual([''])
  })

  it('has a renamed file under one of its two names, and the replaced one until then', async () => {
    for (const mode of ['prefix', 'independent'] as const) {
      const fs = new MemoryFileSystem()
      await fs.makeDirectory('/d')
      await (await write(fs, '/a', 'new')).sync()
      await (await write(fs, '/d/b', 'old')).sync()
      await fs.syncDirectory('/')
      await fs.syncDirectory('/d')
      await fs.rename('/a', '/d/b')
      const both = (after: MemoryFileSystem): string =>
        `${contentOf('/a')(after)} ${contentOf('/d/b')(after)}`
      expect(outcomes(fs, both, { names: mode })).toEqual(['(none) new', 'new old'])
      await fs.syncDirectory('/d')
      expect(outcomes(fs, both, { names: mode })).toEqual(['(none) new'])
    }
  })

  it('never has a file under the name from which it was durably renamed', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/c')
    await fs.makeDirectory('/d')
    await fs.syncDirectory('/')
    await (await write(fs, '/c/new', 'x')).sync()
    await fs.rename('/c/new', '/d/x')
    await fs.syncDirectory('/d')
    for (const mode of ['prefix', 'independent'] as const) {
      expect(outcomes(fs, dump, { names: mode })).toEqual(['/d/x=78'])
    }
  })

  it('lets nothing happen in a folder after a rename out of it that did not', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/c')
    await fs.makeDirectory('/d')
    await fs.syncDirectory('/')
    await fs.open('/c/1', 'create')
    await fs.rename('/c/1', '/d/1')
    await fs.open('/c/2', 'create')
    expect(outcomes(fs, names)).toEqual(['', '/c/1', '/c/2 /d/1', '/d/1'])
  })

  it('loses no file to operations that are lost one by one, only to those that happen', async () => {
    const fs = new MemoryFileSystem()
    await (await write(fs, '/a', 'A')).sync()
    await (await write(fs, '/b', 'B')).sync()
    await fs.syncDirectory('/')
    const chain = fs.kill()
    await chain.rename('/a', '/1')
    await chain.rename('/1', '/2')
    await (await write(chain, '/a', 'C')).sync()
    const hex = { A: '41', B: '42', C: '43' }
    for (const found of outcomes(chain, dump, { names: 'independent' })) {
      expect(found.split('\n').filter((line) => line.endsWith(hex.A))).toHaveLength(1)
    }
    const replaced = fs.kill()
    await replaced.rename('/b', '/a')
    await replaced.remove('/a')
    expect(outcomes(replaced, dump, { names: 'independent' })).toEqual([
      '',
      `/a=${hex.A}\n/b=${hex.B}`,
      `/a=${hex.B}`,
    ])
  })

  it('promises no name that came while the sync of its folder was under way', async () => {
    const fs = new MemoryFileSystem()
    let release: () => void = () => undefined
    fs.delay = (operation) =>
      operation === 'syncDirectory' ? new Promise((resolve) => (release = resolve)) : undefined
    await fs.open('/before', 'create')
    const syncing = fs.syncDirectory('/')
    await fs.open('/during', 'create')
    release()
    await syncing
    expect(outcomes(fs, names)).toEqual(['/before', '/before /during'])
  })

  it('removes a tree from the leaves, in any state between', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/d/e')
    await fs.open('/d/e/1', 'create')
    await fs.open('/d/2', 'create')
    for (const path of ['/d/e', '/d', '/']) await fs.syncDirectory(path)
    const before = fs.journalLength
    await fs.removeTree('/d')
    for (let index = before; index <= fs.journalLength; index++) {
      for (const found of outcomes(fs, names, {}, index)) {
        expect(['', '/d/2', '/d/e/1', '/d/2 /d/e/1']).toContain(found)
      }
    }
    expect(outcomes(fs, names)).toContain('')
    await fs.syncDirectory('/')
    expect(outcomes(fs, names)).toEqual([''])
  })

  it('may have part of a write that was in flight, and never bytes of a later one', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '')
    await fs.syncDirectory('/')
    const before = fs.journalLength
    const first = file.write([Buffer.from('one')], 0)
    await first
    await file.write([Buffer.from('two')], 3)
    const found = outcomes(fs, contentOf('/a'), {}, before)
    expect(found).toContain('')
    expect(found).toContain('one')
    expect(found.some((content) => content.includes('two'))).toBe(false)
  })

  it('sees writes of the live disk that are still held up', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '')
    await fs.syncDirectory('/')
    let release: () => void = () => undefined
    fs.delay = () => new Promise((resolve) => (release = resolve))
    const writing = file.write([Buffer.from('held')], 0)
    expect(outcomes(fs, contentOf('/a'))).toContain('held')
    expect(fs.kill().contentOf('/a')?.toString()).toBe('')
    const partial = new Set<string>()
    for (let seed = 0; seed < MANY; seed++) {
      partial.add(contentOf('/a')(fs.kill(new SeededRandom(seed))))
    }
    expect([...partial].sort()).toEqual(['', 'h', 'he', 'hel', 'held'])
    fs.delay = undefined
    release()
    await writing
    expect(fs.kill().contentOf('/a')?.toString()).toBe('held')
  })

  it('keeps a file that has lost its name readable for who has it open, and nobody else', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', 'open')
    await file.sync()
    await fs.syncDirectory('/')
    await fs.remove('/a')
    await fs.syncDirectory('/')
    const into = Buffer.alloc(4)
    await file.read(into, 0)
    expect(into.toString()).toBe('open')
    expect(outcomes(fs, names)).toEqual([''])
    await file.write([Buffer.from('more')], 4)
    await file.close()
    expect(names(fs.crash(new SeededRandom(1)))).toBe('')
  })
})

describe('all power cuts at one point', () => {
  it('are every combination of sectors, and every prefix of names', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '')
    await fs.syncDirectory('/')
    await file.write([Buffer.alloc(3 * 512, 'x')], 0)
    await fs.open('/b', 'create')
    await fs.open('/c', 'create')
    const found = [...fs.crashesAt(fs.journalLength, new SeededRandom(1))].map(dump)
    // Sectors: 2^3. Names: none, b, b and c.
    expect(found).toHaveLength(8 * 3)
    expect(new Set(found).size).toBe(8 * 3)
    const independent = fs.crashesAt(fs.journalLength, new SeededRandom(1), {
      names: 'independent',
    })
    expect(new Set([...independent].map(dump)).size).toBe(8 * 4)
  })

  it('are samples when there are too many', async () => {
    const fs = new MemoryFileSystem()
    const file = await write(fs, '/a', '')
    await fs.syncDirectory('/')
    await file.write([Buffer.alloc(13 * 512, 'x')], 0)
    expect([...fs.crashesAt(fs.journalLength, new SeededRandom(1))]).toHaveLength(64)
    const some = fs.crashesAt(fs.journalLength, new SeededRandom(1), { samples: 5 })
    expect([...some]).toHaveLength(5)
  })

  it('is one when nothing is pending', async () => {
    const fs = new MemoryFileSystem()
    await (await write(fs, '/a', 'x')).sync()
    await fs.syncDirectory('/')
    expect([...fs.crashesAt(fs.journalLength, new SeededRandom(1))].map(dump)).toEqual(['/a=78'])
  })
})

describe('after a kill', () => {
  it('has everything that was written, synced or not', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/d')
    const file = await write(fs, '/d/a', 'one')
    await file.write([Buffer.from('two')], 3)
    const killed = fs.kill(new SeededRandom(1))
    expect((await readWhole(killed, '/d/a')).toString()).toBe('onetwo')
    expect(killed.openFiles).toBe(0)
  })

  it('still loses to a later power cut what nobody has synced', async () => {
    const fs = new MemoryFileSystem()
    await write(fs, '/a', 'written')
    await fs.syncDirectory('/')
    const killed = fs.kill()
    expect(outcomes(killed, contentOf('/a'))).toContain('')
    const file = await killed.open('/a', 'write')
    await file.sync()
    expect(outcomes(killed, contentOf('/a'))).toEqual(['written'])
    expect(outcomes(fs, contentOf('/a'))).toContain('')
  })

  it('makes durable with its own syncs what the killed process had left', async () => {
    const fs = new MemoryFileSystem()
    const file = await fs.open('/a', 'create')
    for (let i = 0; i < 10; i++) await file.write([Buffer.from(String(i))], i)
    const killed = fs.kill()
    await killed.syncDirectory('/')
    await (await killed.open('/a', 'read')).sync()
    expect(outcomes(killed, contentOf('/a'))).toEqual(['0123456789'])
  })

  it('can be followed by crashes at every point since', async () => {
    const fs = new MemoryFileSystem()
    await write(fs, '/a', 'one')
    const killed = fs.kill()
    const file = await killed.open('/a', 'write')
    await file.write([Buffer.from('two')], 3)
    await file.write([Buffer.from('six')], 6)
    const kept = [0, 1, 2].map((index) =>
      contentOf('/a')(killed.crashAt(index, new SeededRandom(1), { pending: 'keep' })),
    )
    // A write that is in flight at the point counts as pending.
    expect(kept).toEqual(['onetwo', 'onetwosix', 'onetwosix'])
    expect(killed.killAt(0).contentOf('/a')?.toString()).toBe('one')
  })

  it('can be asked for at every point of the past', async () => {
    const fs = new MemoryFileSystem()
    const file = await fs.open('/a', 'create')
    const start = fs.journalLength
    for (let i = 0; i < 5; i++) {
      await file.write([Buffer.from(String(i))], i)
      await file.sync()
    }
    for (let index = start; index <= fs.journalLength; index++) {
      const expected = '01234'.slice(0, Math.ceil((index - start) / 2))
      expect(fs.killAt(index).contentOf('/a')?.toString()).toBe(expected)
    }
  })
})

type Step = {
  readonly kind: string
  readonly file: number
  readonly other: number
  readonly position: number
  readonly length: number
}

const kinds =
  'append append append overwrite truncate sync sync create create rename remove sync-directory sync-directory'.split(
    ' ',
  )

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.record({
    kind: fc.constantFrom(...kinds),
    file: fc.nat(5),
    other: fc.nat(5),
    position: fc.nat(3000),
    length: fc.integer({ min: 1, max: 3000 }),
  }),
  { minLength: 1, maxLength: 40 },
)

const folders = ['/d', '/e']
const pathOf = (number: number): string => `${folders[number % 2]}/${number >> 1}`

/** What must be there after a power cut at this point, worked out without the disk's help. */
interface Promise_ {
  readonly index: number
  /** Of files whose name is durable and has not been touched since. */
  readonly files: ReadonlyMap<string, ModelFile>
  /** Names that are durably absent, and untouched since. */
  readonly absent: readonly string[]
}

interface ModelFile {
  readonly content: Buffer
  readonly synced: Buffer
  /** No change since the last sync. */
  readonly clean: boolean
  /** Smallest size since the last sync: what lies below and was not overwritten is as it was synced. */
  readonly intact: number
}

async function perform(fs: MemoryFileSystem, history: readonly Step[]): Promise<Promise_[]> {
  for (const folder of folders) await fs.makeDirectory(folder)
  await fs.syncDirectory('/')
  const live = new Map<string, { handle: File; file: ModelFile }>()
  const durable = new Map<string, { handle: File; file: ModelFile } | undefined>()
  const touched = new Set<string>()
  const promises: Promise_[] = []
  let stamp = 0
  const note = (): void => {
    const files = new Map<string, ModelFile>()
    const absent: string[] = []
    for (let number = 0; number < 6; number++) {
      const path = pathOf(number)
      if (touched.has(path)) continue
      const entry = durable.get(path)
      if (entry === undefined) absent.push(path)
      else files.set(path, { ...entry.file })
    }
    promises.push({ index: fs.journalLength, files, absent })
  }
  note()
  for (const { kind, file: number, other, position, length } of history) {
    const path = pathOf(number)
    const entry = live.get(path)
    if (kind === 'create') {
      if (entry !== undefined) continue
      const handle = await fs.open(path, 'create')
      const empty = Buffer.alloc(0)
      live.set(path, {
        handle,
        file: { content: empty, synced: empty, clean: true, intact: 0 },
      })
      touched.add(path)
    } else if (kind === 'sync-directory') {
      const folder = folders[number % 2] ?? ''
      await fs.syncDirectory(folder)
      for (let each = number % 2; each < 6; each += 2) {
        const synced = pathOf(each)
        durable.set(synced, live.get(synced))
        touched.delete(synced)
      }
    } else if (entry === undefined) {
      continue
    } else if (kind === 'remove') {
      await fs.remove(path)
      live.delete(path)
      touched.add(path)
    } else if (kind === 'rename') {
      const to = pathOf(other)
      if (to === path) continue
      await fs.rename(path, to)
      live.set(to, entry)
      live.delete(path)
      touched.add(path)
      touched.add(to)
    } else if (kind === 'sync') {
      await entry.handle.sync()
      const { content } = entry.file
      entry.file = { content, synced: content, clean: true, intact: content.length }
    } else if (kind === 'truncate') {
      const size = Math.min(position, entry.file.content.length)
      await entry.handle.truncate(size)
      const { content, synced, intact } = entry.file
      entry.file = {
        content: content.subarray(0, size),
        synced,
        clean: false,
        intact: Math.min(intact, size),
      }
    } else {
      const at =
        kind === 'append'
          ? entry.file.content.length
          : Math.min(position, entry.file.content.length)
      // No byte is zero, so that zeros can be told from data.
      const bytes = Buffer.alloc(length, (stamp++ % 255) + 1)
      await entry.handle.write([bytes], at)
      const { content, synced, intact } = entry.file
      const next = Buffer.alloc(Math.max(content.length, at + length))
      content.copy(next)
      bytes.copy(next, at)
      entry.file = { content: next, synced, clean: false, intact: Math.min(intact, at) }
    }
    note()
  }
  return promises
}

describe('any history', () => {
  it('keeps every synced byte under every synced name, at any crash point', async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.nat(), fc.boolean(), async (history, seed, independent) => {
        const fs = new MemoryFileSystem()
        const promises = await perform(fs, history)
        const random = new SeededRandom(seed)
        const options: CrashOptions = { names: independent ? 'independent' : 'prefix' }
        for (const { index, files, absent } of promises) {
          const after = fs.crashAt(index, random, options)
          for (const path of absent) expect(after.contentOf(path)).toBeUndefined()
          for (const [path, { synced, clean, intact }] of files) {
            const content = after.contentOf(path)
            expect(content).toBeDefined()
            // The write after this point may be in flight already, and reaches no byte below where it starts.
            const next = fs.journal[index]
            if (clean && next?.kind !== 'write') expect(content?.equals(synced)).toBe(true)
            const safe = next?.kind === 'write' ? Math.min(intact, next.position) : intact
            expect(content?.subarray(0, safe).equals(synced.subarray(0, safe))).toBe(true)
          }
        }
      }),
      { numRuns: 150 },
    )
  })

  it('gives the same disk for a seed whether it is asked at once or later, in any order', async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.nat(), async (history, seed) => {
        const whole = new MemoryFileSystem()
        await perform(whole, history)
        const cut = Math.floor(history.length / 2)
        const half = new MemoryFileSystem()
        await perform(half, history.slice(0, cut))
        const index = half.journalLength
        const inFlight = whole.journal[index]
        fc.pre(inFlight?.kind !== 'write')
        const atOnce = dump(half.crash(new SeededRandom(seed)))
        const end = dump(whole.crash(new SeededRandom(seed)))
        expect(dump(whole.crashAt(index, new SeededRandom(seed)))).toBe(atOnce)
        for (let i = 0; i <= whole.journalLength; i++) whole.crashAt(i, new SeededRandom(seed))
        expect(dump(whole.crashAt(index, new SeededRandom(seed)))).toBe(atOnce)
        expect(dump(whole.crash(new SeededRandom(seed)))).toBe(end)
        expect(dump(whole.killAt(index))).toBe(dump(half))
      }),
      { numRuns: 100 },
    )
  })

  it('finds every point of a long history, asked for in any order', async () => {
    const fs = new MemoryFileSystem()
    const file = await fs.open('/a', 'create')
    await fs.syncDirectory('/')
    const start = fs.journalLength
    for (let i = 0; i < 500; i++) {
      await file.write([Buffer.from([i & 0xff])], i)
      await file.sync()
    }
    const random = new SeededRandom(7)
    for (let i = 0; i < 300; i++) {
      const index = start + random.below(1001)
      const lost = fs.crashAt(index, random, { pending: 'lose' }).contentOf('/a')
      expect(lost?.length).toBe(Math.floor((index - start) / 2))
      expect(lost?.every((byte, at) => byte === (at & 0xff))).toBe(true)
      expect(fs.killAt(index).contentOf('/a')?.length).toBe(Math.ceil((index - start) / 2))
    }
  })

  it('leaves the live disk and other answers alone, whatever is done in one answer', async () => {
    await fc.assert(
      fc.asyncProperty(steps, steps, fc.nat(), async (history, later, seed) => {
        const fs = new MemoryFileSystem()
        await perform(fs, history)
        const before = dump(fs)
        const one = fs.crash(new SeededRandom(seed))
        const other = fs.crash(new SeededRandom(seed))
        const expected = dump(other)
        expect(dump(one)).toBe(expected)
        for (const path of one.files()) {
          const file = await one.open(path, 'write')
          await file.truncate(1)
          await file.write([Buffer.from('changed')], 0)
          await file.sync()
        }
        await one.removeTree('/d')
        await perform(
          one,
          later.filter((step) => step.kind !== 'create'),
        )
        expect(dump(other)).toBe(expected)
        expect(dump(fs)).toBe(before)
        expect(dump(fs.crash(new SeededRandom(seed)))).toBe(expected)
      }),
      { numRuns: 50 },
    )
  })

  it('has lost nothing more after a second crash with nothing done in between', async () => {
    await fc.assert(
      fc.asyncProperty(steps, fc.nat(), async (history, seed) => {
        const fs = new MemoryFileSystem()
        await perform(fs, history)
        const once = fs.crash(new SeededRandom(seed))
        expect(dump(once.crash(new SeededRandom(seed + 1)))).toBe(dump(once))
      }),
      { numRuns: 50 },
    )
  })

  it('has old or new content, whole, of a file that is replaced', async () => {
    const fs = new MemoryFileSystem()
    await fs.makeDirectory('/d')
    await fs.syncDirectory('/')
    const versions = Array.from({ length: 8 }, (_, i) => Buffer.alloc(700 * (i + 1), i + 1))
    const ends: number[] = []
    for (const version of versions) {
      await replaceFile(fs, '/d', 'x', version)
      ends.push(fs.journalLength)
    }
    for (const names of ['prefix', 'independent'] as const) {
      for (let index = ends[0] ?? 0; index <= fs.journalLength; index++) {
        const atLeast = ends.findLastIndex((end) => end <= index)
        for (let seed = 0; seed < 20; seed++) {
          const content = fs.crashAt(index, new SeededRandom(seed), { names }).contentOf('/d/x')
          const found = versions.findIndex((version) => content?.equals(version) === true)
          expect(found).toBeGreaterThanOrEqual(atLeast)
          expect(found).toBeLessThanOrEqual(atLeast + 1)
        }
      }
    }
  })

  it('is not fooled by a program that forgets to sync the folder', async () => {
    // The negative control of the test above: the same, without the last step.
    const fs = new MemoryFileSystem()
    await (await write(fs, '/x', 'old')).sync()
    await fs.syncDirectory('/')
    await (await write(fs, '/x.tmp', 'new')).sync()
    await fs.rename('/x.tmp', '/x')
    expect(outcomes(fs, contentOf('/x'))).toEqual(['new', 'old'])
  })
})

it('remembers nothing of files that are gone for good', async () => {
  const fs = new MemoryFileSystem({ capacityBytes: 1000, keepJournal: false })
  for (let round = 0; round < 50; round++) {
    await fs.makeDirectory('/d/e')
    const file = await write(fs, '/d/e/a', 'x'.repeat(900))
    await file.close()
    await fs.removeTree('/d')
    await fs.syncDirectory('/')
  }
  expect((await fs.space('/')).freeBytes).toBe(1000)
  expect(findSystemCode(await fs.open('/d/e/a', 'read').catch((error: unknown) => error))).toBe(
    'ENOENT',
  )
})
