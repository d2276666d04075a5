// Opens a run in Omniboard, plots two of its metrics, takes a picture, and prints as JSON what can be read there.
//
//   node look.js ADDRESS CHROMIUM PICTURE METRIC...
const { chromium } = require("playwright-core");

const [address, executablePath, picture, ...metrics] = process.argv.slice(2);
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"];
quiet.push("--disable-background-networking", "--disable-component-update");

(async () => {
  const browser = await chromium.launch({ executablePath, args: quiet });
  const page = await browser.newPage({ viewport: { width: 1600, height: 880 } });
  page.setDefaultTimeout(30000);
  const failed = [];
  page.on("response", response => { if (response.status() >= 400) failed.push(response.url()); });
  await page.goto(address);
  const cells = page.locator(".fixedDataTableRowLayout_main").nth(1).locator(".fixedDataTableCellLayout_main");
  await page.locator(".fixedDataTableCellLayout_main", { hasText: "greed_is_good" }).first().waitFor();
  const row = await cells.allInnerTexts();
  await page.locator(".fixedDataTableCellLayout_main", { hasText: "greed_is_good" }).first().click();

  await page.locator(".js-plotly-plot").first().waitFor();
  const menu = page.locator(".btn-group", { hasText: "selected" }).last();
  await menu.locator("button").click();
  for (const label of await menu.locator("li:not(.multiselect-all) label").all()) {
    const wanted = metrics.includes((await label.innerText()).trim());
    if (wanted !== await label.locator("input").isChecked()) await label.click();
  }
  await menu.locator("button").first().click(); // closed again
  await page.waitForFunction(count => document.querySelectorAll(".legendtext").length === count, metrics.length);
  await page.waitForTimeout(500); // the transition of the lines
  const legend = await page.locator(".legendtext").allTextContents();
  const curves = await page.evaluate(() => [...document.querySelector(".js-plotly-plot").data].map(one => ({
    name: one.name, x: [...one.x], y: [...one.y],
  })));
  await page.screenshot({ path: picture });
  await browser.close();
  console.log(JSON.stringify({ row, legend, curves, failed }));
})().catch(error => {
  console.error(`${error}`);
  process.exit(1);
});
