SUMMARY = "The model of an image, and whose models the camera takes"
LICENSE = "CLOSED"

# Put your release beside install.conf: a slim bundle, the trust file, and a file with the device's name on one line.
SRC_URI = "file://model.edgekd file://trust.json file://compatible"
S = "${WORKDIR}"

inherit allarch

do_install() {
    install -d ${D}${datadir}/edgekd ${D}${sysconfdir}/edgekd
    install -m 0644 ${S}/model.edgekd ${D}${datadir}/edgekd/
    install -m 0644 ${S}/trust.json ${S}/compatible ${D}${sysconfdir}/edgekd/
    touch ${D}${sysconfdir}/edgekd/strict
}

FILES:${PN} = "${datadir}/edgekd/model.edgekd ${sysconfdir}/edgekd"
RDEPENDS:${PN} = "edgekd"
