import { fc, test } from '@fast-check/vitest'
import { describe, expect, it } from 'vitest'
import { BrokerError } from '../../../src/common/errors.ts'
import { TopicPattern } from '../../../src/coordination/group/topic-pattern.ts'

function refusal(text: string): BrokerError {
  try {
    TopicPattern.parse(text)
  } catch (error) {
    if (error instanceof BrokerError) return error
    throw error
  }
  throw new Error(`${text} was accepted`)
}

describe('TopicPattern', () => {
  it('finds the pattern anywhere in the name, unless it is tied to the ends', () => {
    const names = ['orders', 'orders-eu', 'old-orders', 'payments']
    const found = (text: string): string[] =>
      names.filter((name) => TopicPattern.parse(text).matches(name))
    expect(found('orders')).toEqual(['orders', 'orders-eu', 'old-orders'])
    expect(found('^orders')).toEqual(['orders', 'orders-eu'])
    expect(found('orders$')).toEqual(['orders', 'old-orders'])
    expect(found('^orders$')).toEqual(['orders'])
    expect(found('^(orders|payments)(-[a-z]{2})?$')).toEqual(['orders', 'orders-eu', 'payments'])
    expect(found('.*')).toEqual(names)
    expect(found('(?i)ORDERS-EU')).toEqual(['orders-eu'])
    expect(found('\\Qorders-\\E')).toEqual(['orders-eu'])
    expect(found('nothing')).toEqual([])
  })

  it('keeps its text', () => {
    expect(TopicPattern.parse('^a|b').text).toBe('^a|b')
  })

  const letter = fc.constantFrom('a', 'b', '-', '.')
  const piece = fc.oneof(
    letter.map((found) => (found === '.' ? '\\.' : found)),
    fc.constantFrom('.', '[ab]', '[^a]', '(a|b)', '(ab)', '\\w', '\\d'),
  )
  const quantified = fc
    .tuple(piece, fc.constantFrom('', '', '*', '+', '?', '{2}', '{1,3}', '{0,2}?', '*?'))
    .map(([what, times]) => what + times)
  const pattern = fc
    .tuple(
      fc.constantFrom('', '^'),
      fc.array(quantified, { minLength: 1, maxLength: 6 }),
      fc.constantFrom('', '$'),
    )
    .map(([start, pieces, end]) => start + pieces.join('') + end)
  test.prop([pattern, fc.array(letter, { maxLength: 12 })], { numRuns: 500 })(
    'finds what a RegExp of the same text finds',
    (text, letters) => {
      const name = letters.join('')
      expect(TopicPattern.parse(text).matches(name)).toBe(new RegExp(text).test(name))
    },
  )

  it.each([
    ['', 'is empty'],
    ['x'.repeat(1001), '1001 characters; the limit is 1000'],
    ['[a', 'missing closing ]'],
    ['(a', 'missing closing )'],
    ['*', 'missing argument to repetition'],
    ['a{2,1}', 'invalid repeat count'],
    ['\\', 'trailing backslash'],
    ['a(?=b)', 'lookaheads and lookbehinds are not supported'],
    ['a(?!b)', 'lookaheads and lookbehinds are not supported'],
    ['(?<=a)b', 'lookaheads and lookbehinds are not supported'],
    ['(?<!a)b', 'lookaheads and lookbehinds are not supported'],
    ['(a)-\\1', 'backreferences are not supported'],
    ['(?<x>a)-\\k<x>', 'backreferences are not supported'],
    ['(?>a)b', 'atomic groups and possessive repeats are not supported'],
    ['a++', 'atomic groups and possessive repeats are not supported'],
  ])('refuses %j and says why', (text, why) => {
    const error = refusal(text)
    expect(error.code).toBe('INVALID_PATTERN')
    expect(error.message).toContain(why)
    expect(error.details['field']).toBe('pattern')
  })

  it('takes 1 and 1000 characters', () => {
    expect(TopicPattern.parse('x').matches('axe')).toBe(true)
    const longest = 'x'.repeat(998)
    expect(TopicPattern.parse(longest).matches(longest)).toBe(true)
    expect(refusal('x'.repeat(1000)).message).toContain('1000 steps')
  })

  it.each([
    ['two counts that multiply', '(a{1000}){1000}'],
    ['a long group, many times', `(${'a'.repeat(980)}){1000}`],
    ['three counts that multiply', '((a{100}){100}){100}'],
    ['many groups, each repeated', '(a?){500}'.repeat(100)],
    ['many groups with nested counts', '(a{0,30}){0,33}'.repeat(60)],
    ['brackets that \\Q quotes', `\\Q[\\E(${'a'.repeat(900)}){1000}`],
    ['a class that begins with its end', `[]{](${'a'.repeat(900)}){1000}`],
    ['a negated class that begins with its end', `[^](]((${'a'.repeat(400)}){30}){33}`],
    ['a class with a named class', `[[:alpha:]](${'a'.repeat(900)}){999}`],
    ['a bracket that is escaped', `\\[(${'a'.repeat(900)}){999}`],
    ['many groups that double', '(('.repeat(200) + 'a' + '){2})'.repeat(120) + '))'.repeat(80)],
    ['a range of counts', '[a-z]{1,501}'],
  ])('refuses %s before its compilation can hold anyone up', (_, text) => {
    const start = performance.now()
    const error = refusal(text)
    expect(error.code).toBe('INVALID_PATTERN')
    // A million instructions take half a second. The bound is wide because other tests run beside this one.
    expect(performance.now() - start).toBeLessThan(300)
  })

  it('takes counts that stay small when written out', () => {
    const pattern = TopicPattern.parse('^[a-z]{1,100}-\\d{4}-\\d{2}(\\.[a-z0-9]{8}){0,10}$')
    expect(pattern.matches('orders-2026-01.abcdefgh')).toBe(true)
    expect(pattern.matches('orders-2026-1')).toBe(false)
  })

  it('does not backtrack', () => {
    const start = performance.now()
    expect(TopicPattern.parse('^(a+)+$').matches(`${'a'.repeat(200)}b`)).toBe(false)
    expect(TopicPattern.parse('(.*a){20}$').matches(`${'a'.repeat(200)}b`)).toBe(false)
    expect(performance.now() - start).toBeLessThan(1000)
  })
})
