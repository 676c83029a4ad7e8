// As types.mts, from CommonJS.

import siren = require('libsiren');

export async function uses(): Promise<boolean> {
  const guard = await siren.open();
  const { harmful } = await guard.score('text');
  await guard.close();
  // @ts-expect-error guards are made by open
  new siren.Guard();
  return harmful && guard instanceof siren.Guard;
}
