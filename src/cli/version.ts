import type { CliIo } from './io.ts'
import { EXIT_DONE } from './io.ts'
import type { AdminOptions } from './topics.ts'
import { findVersion } from '../server/version.ts'

/** What runs here, down to the tier of each codec. */
export async function version(io: CliIo, options: AdminOptions): Promise<number> {
  const { lz4Tier, isCompressionAvailable } = await import('../record/compression.ts')
  const { crc32cTier } = await import('../bytes/crc32c.ts')
  const facts = {
    version: findVersion(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    crc32c: crc32cTier,
    lz4: lz4Tier,
    zstd: isCompressionAvailable('zstd'),
  }
  const { print } = await import('./topics.ts')
  const text =
    `millrace ${facts.version}\n` +
    `node     ${facts.node} (${facts.platform})\n` +
    `crc32c   ${facts.crc32c}\n` +
    `lz4      ${facts.lz4}\n` +
    `zstd     ${facts.zstd ? 'yes' : 'no: Node 22.15 or newer has it'}\n`
  print(io, options, facts, text)
  return EXIT_DONE
}
