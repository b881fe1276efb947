import { BrokerError, findSystemCode } from '../../common/errors.ts'
import { isOffset, toOffset } from '../../common/offset.ts'
import type { Offset } from '../../common/offset.ts'
import { crc32c } from '../../bytes/crc32c.ts'
import { readWhole, replaceFile } from '../../fs/file-system.ts'
import type { FileSystem } from '../../fs/file-system.ts'

export const COMPACTION_FILE = 'compaction'

/** How far compaction has come in a log. Only saves work: without it everything counts as not compacted, and the next round makes it anew. */
export interface CompactionState {
  /** Below it no two records have the same key, but for what {@link uncleanTo} says. */
  readonly cleanedTo: Offset
  /** Some segment below this could not be read or written anew, and may hold older records of any key: no tombstone may go. */
  readonly uncleanTo: Offset
  /** From then on no tombstone's grace goes on; -1 when there is none. */
  readonly tombstonesDueMs: number
}

const NOTHING: CompactionState = {
  cleanedTo: toOffset(0),
  uncleanTo: toOffset(0),
  tombstonesDueMs: -1,
}

/** One line of JSON with its checksum behind it, as a seal has it. */
export async function writeCompactionState(
  fs: FileSystem,
  directory: string,
  state: CompactionState,
): Promise<void> {
  const body = JSON.stringify({ format: 1, ...state })
  const crc = crc32c(Buffer.from(body)).toString(16).padStart(8, '0')
  await replaceFile(fs, directory, COMPACTION_FILE, Buffer.from(`${body} ${crc}\n`))
}

/** What the file says; nothing compacted where it is missing or damaged. */
export async function readCompactionState(
  fs: FileSystem,
  directory: string,
): Promise<CompactionState> {
  let text: string
  try {
    text = (await readWhole(fs, `${directory}/${COMPACTION_FILE}`)).toString('latin1')
  } catch (error) {
    const code = findSystemCode(error)
    if (code === 'ENOENT' || code === 'EIO') return NOTHING
    throw error
  }
  const match = /^(\{.*\}) ([0-9a-f]{8})\n$/.exec(text)
  const body = match?.[1] ?? ''
  if (crc32c(Buffer.from(body)) !== Number.parseInt(match?.[2] ?? '', 16)) return NOTHING
  const value: unknown = JSON.parse(body)
  if (typeof value !== 'object' || value === null) return NOTHING
  const { format, cleanedTo, uncleanTo, tombstonesDueMs } = value as Readonly<
    Record<string, unknown>
  > // An object: any field may be asked for.
  if (format !== 1) {
    throw new BrokerError('UNSUPPORTED_FORMAT', `${COMPACTION_FILE} is of a later format`)
  }
  const isWhole =
    isOffset(cleanedTo) && isOffset(uncleanTo) && Number.isSafeInteger(tombstonesDueMs)
  return isWhole ? { cleanedTo, uncleanTo, tombstonesDueMs: Number(tombstonesDueMs) } : NOTHING
}
