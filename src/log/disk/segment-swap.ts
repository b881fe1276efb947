import { findSystemCode } from '../../common/errors.ts'
import type { Offset } from '../../common/offset.ts'
import type { FileSystem } from '../../fs/file-system.ts'
import {
  parseSegmentFileName,
  parseSwapFileName,
  segmentFileName,
  swapFileName,
} from '../../segment/segment-names.ts'
import type { SegmentFileKind } from '../../segment/segment-names.ts'

/**
 * How one compacted segment takes the place of several, so that after any crash the folder holds the old ones or the new one:
 *
 *   1. the new segment is written to `….log.tmp` and flushed                            a crash: recovery removes it, the old ones are whole
 *   2. renamed to `<base>-<end>.swap`, folder flushed                                   from here on the new one counts
 *   3. the old logs behind `base` and all indexes and seals in [base, end) are removed, folder flushed
 *   4. renamed to `<base>.log`, over the old one, folder flushed
 *   5. indexes and seal are written                                                     a crash: they are made anew, as always
 *
 * The name says which range it replaces, so recovery needs to read nothing to finish steps 3 and 4, as often as it is killed. Old files never
 * stand beside a new `<base>.log`: which of several removals survive a power cut is up to the disk, and a segment would seem to be missing.
 */
export interface SwapRange {
  readonly baseOffset: Offset
  readonly endOffset: Offset
}

const BESIDE: readonly SegmentFileKind[] = ['index', 'timeindex', 'seal']
const WHOLE: readonly SegmentFileKind[] = ['log', ...BESIDE]

/** Step 3, but for the flush. @param bases of the old segments, that of the new one first */
export async function removeReplaced(
  fs: FileSystem,
  directory: string,
  bases: readonly Offset[],
): Promise<void> {
  for (const [i, base] of bases.entries()) {
    for (const kind of i === 0 ? BESIDE : WHOLE) {
      await removeIfThere(fs, `${directory}/${segmentFileName(base, kind)}`)
    }
  }
}

/** Finishes the swaps that a stop has cut short, durably. Answers the names that are in the folder then. */
export async function finishSwaps(fs: FileSystem, directory: string): Promise<string[]> {
  const names = await fs.list(directory)
  const swaps = names.flatMap((name) => parseSwapFileName(name) ?? [])
  if (swaps.length === 0) return names
  for (const swap of swaps) {
    const { baseOffset, endOffset } = swap
    const found = new Set<Offset>()
    for (const name of names) {
      const parsed = parseSegmentFileName(name)
      if (parsed === undefined || parsed.kind === 'snapshot') continue
      if (parsed.baseOffset > baseOffset && parsed.baseOffset < endOffset) {
        found.add(parsed.baseOffset)
      }
    }
    await removeReplaced(fs, directory, [baseOffset, ...found])
    await fs.syncDirectory(directory)
    const from = `${directory}/${swapFileName(baseOffset, endOffset)}`
    await fs.rename(from, `${directory}/${segmentFileName(baseOffset, 'log')}`)
    await fs.syncDirectory(directory)
  }
  return await fs.list(directory)
}

export async function removeIfThere(fs: FileSystem, path: string): Promise<void> {
  try {
    await fs.remove(path)
  } catch (error) {
    if (findSystemCode(error) !== 'ENOENT') throw error
  }
}
