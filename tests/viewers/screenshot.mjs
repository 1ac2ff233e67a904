// Opens a page in Chromium, waits until it says that it has drawn, and keeps a picture:
// node screenshot.mjs CHROMIUM URL WIDTH HEIGHT PNG
import { chromium } from "playwright-core";

const [executablePath, url, width, height, path] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
});
const page = await browser.newPage({ viewport: { width: Number(width), height: Number(height) } });
page.on("console", (message) => message.type() === "error" && console.error(message.text()));
await page.goto(url);
await page.waitForFunction(() => document.title !== "loading", undefined, { timeout: 60000 });
const title = await page.title();
if (title !== "drawn") {
  console.error(title);
  process.exitCode = 1;
}
await page.screenshot({ path });
await browser.close();
