import { BrokerError } from '../common/errors.ts'

/**
 * Settings in their order, so that the first wrong one is the one that is named.
 * @throws BrokerError INVALID_CONFIG when one is given twice
 */
export function toSettingTexts(
  entries: readonly { readonly name: string; readonly value: string }[],
): Record<string, string> {
  const record: Record<string, string> = {}
  for (const { name, value } of entries) {
    if (Object.hasOwn(record, name)) {
      throw new BrokerError('INVALID_CONFIG', `the setting ${name} is given twice`, { key: name })
    }
    // Not an assignment: a setting may be called __proto__ by somebody who means no good.
    Object.defineProperty(record, name, { value, enumerable: true, configurable: true })
  }
  return record
}
