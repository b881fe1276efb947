import { mkdtemp, open, rm, type FileHandle } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { measureAsync, type Measurement } from './measure.ts'

const BATCH_BYTES = 1024
const TOGETHER = 64

/** STYLE §7: a write or a sync for each batch of 1 KiB, against one for 64. In a temporary folder: TMPDIR says on which disk. */
export async function measureDisk(): Promise<Measurement[]> {
  const folder = await mkdtemp(join(tmpdir(), 'millrace-micro-'))
  const file = await open(join(folder, 'log'), 'w')
  try {
    return [...(await writes(file)), ...(await syncs(file))]
  } finally {
    await file.close()
    await rm(folder, { recursive: true })
  }
}

const batch = Buffer.alloc(BATCH_BYTES, 'batch ')
const batches = Array.from({ length: TOGETHER }, () => batch)

async function writes(file: FileHandle): Promise<Measurement[]> {
  const group = `write a batch of ${BATCH_BYTES} bytes`
  return [
    await measureAsync(
      group,
      'a write each',
      4096,
      async (times) => {
        let bytes = 0
        for (let done = 0; done < times; done++) {
          bytes += (await file.write(batch, 0, batch.length, done * BATCH_BYTES)).bytesWritten
        }
        return bytes
      },
      BATCH_BYTES,
    ),
    await measureAsync(
      group,
      `one writev for ${TOGETHER}`,
      65_536,
      async (times) => {
        let bytes = 0
        for (let done = 0; done < times; done += TOGETHER) {
          bytes += (await file.writev(batches, done * BATCH_BYTES)).bytesWritten
        }
        return bytes
      },
      BATCH_BYTES,
    ),
  ]
}

async function syncs(file: FileHandle): Promise<Measurement[]> {
  const group = `make a batch of ${BATCH_BYTES} bytes durable`
  return [
    await measureAsync(group, 'an fdatasync each', 64, async (times) => {
      for (let done = 0; done < times; done++) {
        await file.write(batch, 0, batch.length, done * BATCH_BYTES)
        await file.datasync()
      }
      return times
    }),
    await measureAsync(group, `one fdatasync for ${TOGETHER}`, 4096, async (times) => {
      for (let done = 0; done < times; done += TOGETHER) {
        await file.writev(batches, done * BATCH_BYTES)
        await file.datasync()
      }
      return times
    }),
  ]
}
